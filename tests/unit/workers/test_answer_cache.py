"""Which answers a worker gives again, and for how long."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hubcache.oci.registry import Registry
from hubcache.serve.messages import LOCAL_TOKEN, Answer, Forward, Listener, Request, Result
from hubcache.transfer.sources import BytesSource
from hubcache.workers import answer_cache
from hubcache.workers.answer_cache import SECONDS, AnswerCache
from hubcache.workers.epoch import Epoch

HUB = Registry.parse("registry-1.docker.io")
REQUEST = Request("GET", "/v2/library/app/manifests/1", HUB, Listener.PROXY, {"accept": "a"}, "", "10.0.0.1")
ANSWER = Answer(200, {"ETag": "x"}, Result.HIT, b"body", length=4, size=4, kind="manifest")


class Bench:
    """What a worker remembers, with a clock and an epoch set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.epoch = Epoch.create()
        self.repeats = AnswerCache(self.epoch, lambda: self.now)

    def keep(self, request: Request = REQUEST, answer: object = ANSWER) -> None:
        self.repeats.keep(request, answer, self.epoch.number)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.epoch.close()


def test_same_question_gets_the_same_answer_whoever_asks(bench: Bench) -> None:
    bench.keep()
    for client in ("10.0.0.1", "10.0.0.2"):
        assert bench.repeats.answer(replace(REQUEST, client=client)) == ANSWER


@pytest.mark.parametrize("status", [401, 304, 200])
def test_what_is_answered_locally_is_repeated_too(bench: Bench, status: int) -> None:
    bench.keep(answer=replace(ANSWER, status=status, result=Result.LOCAL))
    assert bench.repeats.answer(REQUEST) is not None


@pytest.mark.parametrize(
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
        lambda r: replace(r, headers=r.headers | {"authorization": "Bearer own"}),
        lambda r: replace(r, headers=r.headers | {"range": "bytes=0-1"}),
    ],
)
def test_another_question_does_not(bench: Bench, change: Callable[[Request], Request]) -> None:
    bench.keep()
    assert bench.repeats.answer(change(REQUEST)) is None


@pytest.mark.parametrize(
    "answer",
    [
        None,
        Forward(None),
        replace(ANSWER, source=BytesSource(b"body")),
        *(replace(ANSWER, result=result) for result in Result if result not in (Result.HIT, Result.LOCAL)),
    ],
)
def test_only_what_the_store_had_is_repeated(bench: Bench, answer: object) -> None:
    bench.keep(answer=answer)
    assert bench.repeats.answer(REQUEST) is None


def test_what_a_user_got_is_repeated_for_nobody(bench: Bench) -> None:
    own = replace(REQUEST, headers={"accept": "a", "authorization": "Bearer own"})
    bench.keep(own)
    assert bench.repeats.answer(own) is None
    assert bench.repeats.answer(REQUEST) is None


@pytest.mark.parametrize("change", [{"method": "POST"}, {"headers": {"accept": "a", "range": "bytes=0-1"}}])
def test_nothing_else_than_whole_reads_is_repeated(bench: Bench, change: dict[str, object]) -> None:
    other = replace(REQUEST, **change)
    bench.keep(other, replace(ANSWER, status=206))
    assert bench.repeats.answer(other) is None
    assert bench.repeats.answer(REQUEST) is None


def test_answer_is_repeated_for_a_moment_only(bench: Bench) -> None:
    bench.keep()
    bench.now += SECONDS * 0.99
    assert bench.repeats.answer(REQUEST) is not None
    bench.now += SECONDS * 0.02
    assert bench.repeats.answer(REQUEST) is None


def test_any_change_ends_it_at_once(bench: Bench) -> None:
    bench.keep()
    bench.epoch.advance()
    assert bench.repeats.answer(REQUEST) is None
    bench.keep()
    assert bench.repeats.answer(REQUEST) is not None


def test_answer_to_a_question_from_before_a_change_is_not_kept(bench: Bench) -> None:
    asked_in = bench.epoch.number
    bench.epoch.advance()
    bench.repeats.keep(REQUEST, ANSWER, asked_in)
    assert bench.repeats.answer(REQUEST) is None


def test_memory_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "MAX_BYTES", 20_000)
    bench.repeats = AnswerCache(bench.epoch, lambda: bench.now)
    for number in range(0, 30_000, 30):
        bench.keep(replace(REQUEST, path=f"/v2/library/app/manifests/{number}"), replace(ANSWER, body=b"b" * number))
        assert sum(len(answer.body) for answer in bench.repeats._answers.values()) <= 20_000
        assert len(bench.repeats._answers) <= 10


def test_what_clients_say_is_not_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "MAX_COUNTED", 10)
    long = "x" * 14_000
    for number in range(100):
        said = {"accept": f"{long}{number}", "user-agent": f"{long}{number}", "x": long}
        request = replace(REQUEST, headers=said, query=f"{long}{number}", client=str(number))
        bench.keep(request)
        assert (bench.repeats.answer(request) is not None) is (number < 10)
    counts = bench.repeats.take_counts()
    assert len(counts) == 10
    assert max(len(repr(request)) for request, _, _ in counts) < 1000
    assert all(len(key) == 16 for key in bench.repeats._answers)


def test_clients_of_one_platform_ask_the_same(bench: Bench) -> None:
    def asked_by(agent: str) -> Request:
        return replace(REQUEST, headers=REQUEST.headers | {"user-agent": agent})

    bench.keep(asked_by("docker/28 os/linux arch/arm64"))
    assert bench.repeats.answer(asked_by("docker/29 os/linux arch/arm64 (other)")) is not None
    assert bench.repeats.answer(asked_by("docker/28 os/linux arch/s390x")) is None


def test_whoever_gets_the_answer_may_change_it(bench: Bench) -> None:
    bench.keep()
    given = bench.repeats.answer(REQUEST)
    assert given is not None
    given.body = b"other"
    assert bench.repeats.answer(REQUEST) == ANSWER


def test_repeated_answers_are_counted_by_client(bench: Bench) -> None:
    others = [replace(REQUEST, client="10.0.0.2"), replace(REQUEST, path="/v2/library/app/manifests/2")]
    bench.keep()
    bench.keep(others[1])
    for request in (REQUEST, REQUEST, *others):
        assert bench.repeats.answer(request) is not None
    counts = bench.repeats.take_counts()
    told = [replace(request, headers={}) for request in (REQUEST, *others)]
    assert [(request, count) for request, _, count in counts] == list(zip(told, (2, 1, 1), strict=True))
    assert {answer.status for _, answer, _ in counts} == {200}
    assert bench.repeats.take_counts() == []


def test_answer_is_kept_for_the_epoch_in_which_it_was_asked_for(bench: Bench) -> None:
    """The owner is another process: it may go on to the next at any moment."""

    class Leaping(Epoch):
        @property
        def number(self) -> int:
            number = bench.epoch.number
            bench.epoch.advance()
            return number

    asked_in = bench.epoch.number
    bench.repeats._epoch = Leaping(bench.epoch._memory)
    bench.repeats.keep(REQUEST, ANSWER, asked_in)
    bench.repeats._epoch = bench.epoch
    assert bench.repeats.answer(REQUEST) is None
