"""Repeats are counted by answer and client, in bounded memory."""

from dataclasses import replace

import pytest
from hubcache.oci.registry import Registry
from hubcache.serve.answer_cache import RecentAnswer
from hubcache.serve.messages import Answer, Listener, Request, Result
from hubcache.workers import repeat_counts
from hubcache.workers.repeat_counts import RepeatCounts

HUB = Registry.parse("registry-1.docker.io")
REQUEST = Request("GET", "/v2/library/app/manifests/1", HUB, Listener.PROXY, {"accept": "a"}, "", "10.0.0.1")
ANSWER = Answer(200, {"ETag": "x"}, Result.HIT, b"body", length=4, size=4, kind="manifest")
OTHER = replace(ANSWER, body=b"other", length=5, size=5)


def test_repeats_are_counted_by_client_and_answer() -> None:
    counts, recent, other = RepeatCounts(), RecentAnswer(ANSWER), RecentAnswer(OTHER)
    requests = [REQUEST, replace(REQUEST, client="10.0.0.2"), replace(REQUEST, path="/v2/library/app/manifests/2")]
    for of, request in ((recent, requests[0]), (recent, requests[0]), (recent, requests[1]), (other, requests[2])):
        assert counts.add(of, request)
    assert counts.take() == list(zip(requests, (ANSWER, ANSWER, OTHER), (2, 1, 1), strict=True))
    assert counts.take() == []


def test_what_cannot_be_counted_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat_counts, "MAX_COUNTED", 10)
    counts, recent = RepeatCounts(), RecentAnswer(ANSWER)
    for number in range(100):
        assert counts.add(recent, replace(REQUEST, client=str(number))) == (number < 10)
    assert counts.add(recent, replace(REQUEST, client="0")), "its client is counted already"
    assert [count for _, _, count in counts.take()] == [2] + [1] * 9
    assert counts.add(recent, replace(REQUEST, client="99"))


def test_text_of_clients_is_not_kept() -> None:
    counts, recent, long = RepeatCounts(), RecentAnswer(ANSWER), "x" * 14_000
    headers = {"accept": long, "user-agent": long, "x": long}
    for number in range(10):
        assert counts.add(recent, replace(REQUEST, headers=headers, query=long, client=str(number)))
    assert max(len(repr(request)) for request, _, _ in counts.take()) < 1000
