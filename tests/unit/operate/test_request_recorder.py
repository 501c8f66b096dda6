"""Requests are recorded in the metrics and the access log."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.oci.registry import Registry
from hubcache.operate.request_recorder import RequestRecorder
from hubcache.serve.messages import Answer, Forward, Listener, Request, Result

REQUEST = Request("GET", "/v2/library/app/manifests/1", Registry.parse("registry-1.docker.io"), Listener.MIRROR, {})


class Recorded:
    """What a recorder reports."""

    def __init__(self) -> None:
        self.answered: list[tuple[Any, ...]] = []
        metrics: Any = SimpleNamespace(answered=lambda *counted: self.answered.append(counted))
        unused: Any = SimpleNamespace()
        self.recorder = RequestRecorder(metrics, unused, unused)


@pytest.mark.parametrize("count", [1, 3])
def test_answer_is_counted_and_logged_as_often_as_it_was_sent(tmp_path: Path, count: int) -> None:
    recorded = Recorded()
    recorded.recorder.use_access_log(tmp_path / "log")
    recorded.recorder.answered(REQUEST, Answer(200, {}, Result.HIT, kind="manifest"), count)
    recorded.recorder.flush_access_log()
    assert recorded.answered == [("manifest", "hit", "mirror", count)]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["repository"] for line in lines] == ["library/app"] * count


def test_forwarded_request_bypasses_the_cache() -> None:
    recorded = Recorded()
    recorded.recorder.answered(REQUEST, Forward(None))
    assert recorded.answered == [("other", "bypass", "mirror", 1)]


def test_log_that_is_not_changed_keeps_its_lines(tmp_path: Path) -> None:
    recorded = Recorded()
    recorded.recorder.use_access_log(tmp_path / "log")
    recorded.recorder.answered(REQUEST, Answer(200, {}, Result.HIT, kind="manifest"))
    recorded.recorder.use_access_log(tmp_path / "log")
    recorded.recorder.flush_access_log()
    assert (tmp_path / "log").read_text().count("\n") == 1
    recorded.recorder.use_access_log(None)
    recorded.recorder.answered(REQUEST, Answer(200, {}, Result.HIT, kind="manifest"))
    recorded.recorder.flush_access_log()
    assert (tmp_path / "log").read_text().count("\n") == 1
