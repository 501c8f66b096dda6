"""The access log has a line for each served manifest and blob, and scripts/simulate can replay it."""

import json
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.registry import Registry
from hubcache.operate.access_log import AccessLog
from hubcache.serve.messages import Answer, Forward, Listener, Request, Result
from simlib.reader import read
from support.engine import running
from support.standin import Hub, random_bytes

DIGEST = Digest.of(b"blob")
HUB = Registry.parse("registry-1.docker.io")


def request(path: str = f"/v2/library/app/blobs/{DIGEST}") -> Request:
    return Request("GET", path, HUB, Listener.PROXY, {"authorization": "Bearer secret"}, client="10.0.0.9")


def answer(status: int = 200, kind: str = "blob") -> Answer:
    headers = {"Docker-Content-Digest": str(DIGEST)}
    return Answer(status, headers, Result.HIT, kind=kind, size=4)


def test_line_has_the_request_and_the_answer_without_credentials(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log")
    log.add(1234.56789, request(), answer())
    log.flush()
    assert json.loads((tmp_path / "log").read_text()) == {
        "ts": 1234.568,
        "door": "proxy",
        "method": "GET",
        "kind": "blob",
        "registry": HUB.host,
        "repository": "library/app",
        "reference": str(DIGEST),
        "digest": str(DIGEST),
        "size": 4,
        "status": 200,
        "result": "hit",
    }


@pytest.mark.parametrize(
    "outcome", [answer(404), answer(302), answer(kind="ping"), Forward("Bearer secret", kind="blob")], ids=str
)
def test_answer_without_content_is_not_logged(tmp_path: Path, outcome: Answer | Forward) -> None:
    log = AccessLog(tmp_path / "log")
    log.add(1.0, request(), outcome)
    log.flush()
    assert not (tmp_path / "log").exists()


def test_lines_are_appended_by_flush_only(tmp_path: Path) -> None:
    for _ in range(2):
        log = AccessLog(tmp_path / "log")
        before = (tmp_path / "log").exists() and (tmp_path / "log").stat().st_size
        log.add(1.0, request(), answer())
        log.add(2.0, request(), answer())
        assert ((tmp_path / "log").exists() and (tmp_path / "log").stat().st_size) == before
        log.flush()
        log.flush()
    assert len((tmp_path / "log").read_text().splitlines()) == 4


def test_file_that_cannot_be_written_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(tmp_path / "missing" / "log")
    for _ in range(3):
        log.add(1.0, request(), answer())
        log.flush()
    assert [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()] == [
        f"hubcache: access log {tmp_path / 'missing' / 'log'} cannot be written: "
        f"[Errno 2] No such file or directory: '{tmp_path / 'missing' / 'log'}'"
    ]
    (tmp_path / "missing").mkdir()
    log.add(2.0, request(), answer())
    log.flush()
    assert json.loads((tmp_path / "missing" / "log").read_text())["ts"] == 2.0


async def test_log_of_the_cache_can_be_replayed(hub: Hub, tmp_path: Path) -> None:
    image = hub.image("library/app", "1", layers=[random_bytes(50_000)])
    async with running(hub, tmp_path / "store", access_log=tmp_path / "log") as cache:
        for _ in range(2):
            await cache.get(Listener.PROXY, f"/v2/{image.repo}/manifests/1")
            for digest in (image.config, *image.layers):
                await cache.get(Listener.PROXY, f"/v2/{image.repo}/blobs/{digest}")
    trace = read(tmp_path / "log")
    assert len(trace.keys) == 6
    assert trace.footprint() >= 50_000


@pytest.mark.parametrize("mode", [None, 0o644, 0o640])
def test_new_file_is_private_and_an_existing_one_keeps_its_mode(tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "access.log"
    if mode is not None:
        path.touch()
        path.chmod(mode)
    log = AccessLog(path)
    log.add(1.0, request(), Answer(200, {}, Result.HIT, kind="blob"))
    log.flush()
    assert path.stat().st_mode & 0o777 == (mode or 0o600)
    assert path.read_text()
