"""Which answers are repeated, to which requests, and for how long."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.registry import Registry
from hubcache.serve import answer_cache
from hubcache.serve.answer_cache import SECONDS, AnswerCache
from hubcache.serve.messages import LOCAL_TOKEN, Answer, Forward, Listener, Request, Result
from hubcache.setup.setup_pages import SetupPages
from hubcache.transfer.sources import BytesSource

HUB = Registry.parse("registry-1.docker.io")
REQUEST = Request("GET", "/v2/library/app/manifests/1", HUB, Listener.PROXY, {"accept": "a"}, "", "10.0.0.1")
CONTENT = Digest.of(b"body")
ANSWER = Answer(200, {"ETag": "x"}, Result.HIT, b"body", length=4, size=4, kind="manifest", content=CONTENT)
OTHER = replace(ANSWER, body=b"other", length=5, size=5)


class CacheHarness:
    """An answer cache whose clock and epoch the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.epoch = 0
        self.cache = AnswerCache(lambda: self.epoch, lambda: self.now)

    def put(self, request: Request = REQUEST, answer: object = ANSWER) -> None:
        """Cache an answer to a request that was sent in the current epoch."""
        self.cache.put(request, answer, self.epoch)

    def get(self, request: Request = REQUEST) -> Answer | None:
        recent = self.cache.get(request)
        return None if recent is None else recent.repeat()


@pytest.fixture
def harness() -> CacheHarness:
    return CacheHarness()


def test_equal_request_of_any_client_gets_the_same_answer(harness: CacheHarness) -> None:
    assert harness.get() is None
    harness.put()
    for client in ("10.0.0.1", "10.0.0.2"):
        assert harness.get(replace(REQUEST, client=client)) == ANSWER


@pytest.mark.parametrize("status", [401, 304, 200])
def test_local_answer_is_repeated(harness: CacheHarness, status: int) -> None:
    answer = replace(ANSWER, status=status, result=Result.LOCAL)
    harness.put(answer=answer)
    assert harness.get() == answer


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
    assert (harness.get(), harness.get(other)) == (ANSWER, OTHER)


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
    assert harness.get() == ANSWER


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
    assert harness.get() == ANSWER


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
    assert harness.get() == ANSWER
    harness.now += SECONDS * 0.02
    assert harness.get() is None


def test_any_change_invalidates_all_answers(harness: CacheHarness) -> None:
    other = replace(REQUEST, path="/v2/library/app/manifests/2")
    harness.put()
    harness.put(other, OTHER)
    harness.epoch += 1
    assert (harness.get(), harness.get(other)) == (None, None)
    harness.put()
    assert (harness.get(), harness.get(other)) == (ANSWER, None)


def test_answer_to_a_request_from_before_a_change_is_not_kept(harness: CacheHarness) -> None:
    harness.epoch += 1
    harness.cache.put(REQUEST, ANSWER, harness.epoch - 1)
    assert harness.get() is None
    harness.put()
    assert harness.get() == ANSWER


def test_answer_belongs_to_the_epoch_in_which_it_was_requested(harness: CacheHarness) -> None:
    """The owner is another process: it may change the epoch at any moment."""

    def changing_epoch() -> int:
        harness.epoch += 1
        return harness.epoch - 1

    cache = AnswerCache(changing_epoch)
    cache.put(REQUEST, ANSWER, harness.epoch)
    assert cache._answers, "it was current when it was put"
    assert cache.get(REQUEST) is None


def test_memory_is_bounded_and_the_latest_answers_are_kept(
    harness: CacheHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "MAX_BYTES", 20_000)
    harness.cache = AnswerCache(lambda: harness.epoch, lambda: harness.now)
    for size in range(0, 30_000, 30):
        request = replace(REQUEST, path=f"/v2/library/app/manifests/{size}")
        answer = replace(ANSWER, body=b"b" * size)
        harness.put(request, answer)
        fits = size + answer_cache._OVERHEAD <= 20_000
        assert harness.get(request) == (answer if fits else None)
        assert sum(len(kept.repeat().body) for kept in harness.cache._answers.values()) <= 20_000
        assert 1 <= len(harness.cache._answers) <= 10


def test_text_of_clients_is_not_kept(harness: CacheHarness) -> None:
    long = "x" * 14_000
    for number in range(10):
        headers = {"accept": f"{long}{number}", "user-agent": f"{long}{number}", "x": long}
        request = replace(REQUEST, headers=headers, query=f"{long}{number}", client=str(number))
        harness.put(request)
        assert harness.get(request) == ANSWER
    assert {len(key) for key in harness.cache._answers} == {16}


def test_clients_of_one_platform_share_answers(harness: CacheHarness) -> None:
    def request_of(agent: str) -> Request:
        return replace(REQUEST, headers=REQUEST.headers | {"user-agent": agent})

    harness.put(request_of("docker/28 os/linux arch/arm64"))
    assert harness.get(request_of("docker/29 os/linux arch/arm64 (other)")) == ANSWER
    assert harness.get(request_of("docker/28 os/linux arch/s390x")) is None


def test_repeated_answer_may_be_modified(harness: CacheHarness) -> None:
    own = replace(ANSWER)
    harness.put(answer=own)
    own.body = b"modified"
    repeated = harness.get()
    assert repeated is not None
    repeated.body = b"modified"
    assert harness.get() == ANSWER


def test_all_of_an_answer_is_repeated_but_its_time(harness: CacheHarness) -> None:
    answer = replace(ANSWER, error="authentication required", result=Result.LOCAL, status=401)
    harness.put(answer=replace(answer, token_wait=1.0))
    assert harness.get() == answer
