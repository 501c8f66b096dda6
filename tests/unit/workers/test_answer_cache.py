"""Which answers a worker repeats, to which requests, and for how long."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hubcache.oci.registry import Registry
from hubcache.serve.messages import LOCAL_TOKEN, Answer, Forward, Listener, Request, Result
from hubcache.setup.setup_pages import SetupPages
from hubcache.transfer.sources import BytesSource
from hubcache.workers import answer_cache
from hubcache.workers.answer_cache import SECONDS, AnswerCache
from hubcache.workers.epoch import Epoch

HUB = Registry.parse("registry-1.docker.io")
REQUEST = Request("GET", "/v2/library/app/manifests/1", HUB, Listener.PROXY, {"accept": "a"}, "", "10.0.0.1")
ANSWER = Answer(200, {"ETag": "x"}, Result.HIT, b"body", length=4, size=4, kind="manifest")
REPEATED = replace(ANSWER, is_repeated=True)
OTHER = replace(ANSWER, body=b"other", length=5, size=5)


class CacheHarness:
    """An answer cache whose clock and epoch the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.epoch = Epoch.create()
        self.cache = AnswerCache(self.epoch, lambda: self.now)

    def put(self, request: Request = REQUEST, answer: object = ANSWER) -> None:
        """Cache an answer to a request that was sent in the current epoch."""
        self.cache.put(request, answer, self.epoch.number)

    def get(self, request: Request = REQUEST) -> Answer | None:
        return self.cache.get(request)


@pytest.fixture
def harness() -> Iterator[CacheHarness]:
    made = CacheHarness()
    yield made
    made.epoch.close()


def test_equal_request_of_any_client_gets_the_same_answer(harness: CacheHarness) -> None:
    assert harness.get() is None
    harness.put()
    for client in ("10.0.0.1", "10.0.0.2"):
        assert harness.get(replace(REQUEST, client=client)) == REPEATED


@pytest.mark.parametrize("status", [401, 304, 200])
def test_local_answer_is_repeated(harness: CacheHarness, status: int) -> None:
    answer = replace(ANSWER, status=status, result=Result.LOCAL)
    harness.put(answer=answer)
    assert harness.get() == replace(answer, is_repeated=True)


DIFFERENT = pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, method="HEAD"),
        lambda r: replace(r, path="/v2/library/app/manifests/2"),
        lambda r: replace(r, query="ns=docker.io"),
        lambda r: replace(r, registry=Registry.parse("ghcr.io")),
        lambda r: replace(r, listener=Listener.MIRROR),
        lambda r: replace(r, to_token_service=True),
        lambda r: replace(r, headers={"accept": "b"}),
        lambda r: replace(r, headers={}),
        lambda r: replace(r, headers=r.headers | {"user-agent": "docker/28 os/linux arch/arm64"}),
        lambda r: replace(r, headers=r.headers | {"if-none-match": '"x"'}),
        lambda r: replace(r, headers=r.headers | {"authorization": f"Bearer {LOCAL_TOKEN}"}),
    ],
)


@DIFFERENT
def test_different_request_gets_its_own_answer(harness: CacheHarness, change: Callable[[Request], Request]) -> None:
    other = change(REQUEST)
    harness.put()
    assert harness.get(other) is None
    harness.put(other, OTHER)
    assert (harness.get(), harness.get(other)) == (REPEATED, replace(OTHER, is_repeated=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, headers=r.headers | {"authorization": "Bearer own"}),
        lambda r: replace(r, headers=r.headers | {"range": "bytes=0-1"}),
        lambda r: replace(r, method="POST"),
    ],
    ids=["credentials", "range", "POST"],
)
def test_request_that_cannot_be_cached_is_neither_answered_nor_kept(
    harness: CacheHarness, change: Callable[[Request], Request]
) -> None:
    other = change(REQUEST)
    harness.put()
    assert harness.get(other) is None
    harness.put(other, OTHER)
    assert harness.get(other) is None
    assert harness.get() == REPEATED
    assert [count for _, _, count in harness.cache.take_counts()] == [1]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        Forward(None),
        replace(ANSWER, source=BytesSource(b"body")),
        *(replace(ANSWER, result=result) for result in Result if result not in (Result.HIT, Result.LOCAL)),
    ],
)
def test_only_answers_from_the_store_are_repeated(harness: CacheHarness, answer: object) -> None:
    harness.put(answer=answer)
    assert harness.get() is None
    harness.put()
    harness.put(answer=answer)
    assert harness.get() == REPEATED


@pytest.mark.parametrize("path", ["/setup", "/setup/attach", "/setup/answered", "/ca.crt"])
def test_setup_page_is_not_repeated_to_a_client_with_another_host(harness: CacheHarness, path: str) -> None:
    """A client could otherwise have others run an attach script that names its own machine."""
    request = replace(REQUEST, path=path, listener=Listener.MIRROR, headers={"host": "attacker.example"})
    pages = SetupPages(Path(__file__), 5000, 8080)
    page = pages.answer(request)
    assert page is not None
    harness.put(request, page)
    assert harness.get(replace(request, headers={"host": "cache.lan"}, client="10.0.0.2")) is None


def test_answer_is_repeated_for_a_short_time(harness: CacheHarness) -> None:
    harness.put()
    harness.now += SECONDS * 0.99
    assert harness.get() == REPEATED
    harness.now += SECONDS * 0.02
    assert harness.get() is None


def test_any_change_invalidates_all_answers(harness: CacheHarness) -> None:
    other = replace(REQUEST, path="/v2/library/app/manifests/2")
    harness.put()
    harness.put(other, OTHER)
    harness.epoch.advance()
    assert (harness.get(), harness.get(other)) == (None, None)
    harness.put()
    assert (harness.get(), harness.get(other)) == (REPEATED, None)


def test_answer_to_a_request_from_before_a_change_is_not_kept(harness: CacheHarness) -> None:
    requested_in = harness.epoch.number
    harness.epoch.advance()
    harness.cache.put(REQUEST, ANSWER, requested_in)
    assert harness.get() is None
    harness.cache.put(REQUEST, ANSWER, harness.epoch.number)
    assert harness.get() == REPEATED


def test_answer_belongs_to_the_epoch_in_which_it_was_requested(harness: CacheHarness) -> None:
    """The owner is another process: it may change the epoch at any moment."""

    class ChangingEpoch(Epoch):
        @property
        def number(self) -> int:
            number = harness.epoch.number
            harness.epoch.advance()
            return number

    requested_in = harness.epoch.number
    harness.cache._epoch = ChangingEpoch(harness.epoch._memory)
    harness.cache.put(REQUEST, ANSWER, requested_in)
    assert harness.cache._answers, "it was current when it was put"
    harness.cache._epoch = harness.epoch
    assert harness.get() is None


def test_memory_is_bounded_and_the_latest_answers_are_kept(
    harness: CacheHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "MAX_BYTES", 20_000)
    harness.cache = AnswerCache(harness.epoch, lambda: harness.now)
    for size in range(0, 30_000, 30):
        request = replace(REQUEST, path=f"/v2/library/app/manifests/{size}")
        answer = replace(ANSWER, body=b"b" * size)
        harness.put(request, answer)
        fits = size + answer_cache._OVERHEAD <= 20_000
        assert harness.get(request) == (replace(answer, is_repeated=True) if fits else None)
        assert sum(len(kept.body) for kept in harness.cache._answers.values()) <= 20_000
        assert 1 <= len(harness.cache._answers) <= 10


def test_text_of_clients_is_not_kept(harness: CacheHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "MAX_COUNTED", 10)
    long = "x" * 14_000
    for number in range(100):
        headers = {"accept": f"{long}{number}", "user-agent": f"{long}{number}", "x": long}
        request = replace(REQUEST, headers=headers, query=f"{long}{number}", client=str(number))
        harness.put(request)
        assert harness.get(request) == (REPEATED if number < 10 else None), "beyond the bound the owner counts"
    counts = harness.cache.take_counts()
    assert len(counts) == 10
    assert max(len(repr(request)) for request, _, _ in counts) < 1000
    assert {len(key) for key in harness.cache._answers} == {16}


def test_clients_of_one_platform_share_answers(harness: CacheHarness) -> None:
    def request_of(agent: str) -> Request:
        return replace(REQUEST, headers=REQUEST.headers | {"user-agent": agent})

    harness.put(request_of("docker/28 os/linux arch/arm64"))
    assert harness.get(request_of("docker/29 os/linux arch/arm64 (other)")) == REPEATED
    assert harness.get(request_of("docker/28 os/linux arch/s390x")) is None


def test_repeated_answer_may_be_modified(harness: CacheHarness) -> None:
    harness.put()
    repeated = harness.get()
    assert repeated is not None
    repeated.body = b"modified"
    assert harness.get() == REPEATED


def test_repeats_are_counted_by_client_and_request(harness: CacheHarness) -> None:
    others = [replace(REQUEST, client="10.0.0.2"), replace(REQUEST, path="/v2/library/app/manifests/2")]
    harness.put()
    harness.put(others[1], OTHER)
    assert harness.get(replace(REQUEST, path="/v2/library/app/manifests/3")) is None
    for request in (REQUEST, REQUEST, *others):
        assert harness.get(request) is not None
    counted = [replace(request, headers={}) for request in (REQUEST, *others)]
    assert harness.cache.take_counts() == list(zip(counted, (ANSWER, ANSWER, OTHER), (2, 1, 1), strict=True))
    assert harness.cache.take_counts() == []
