"""Which requests count as one pull."""

import pytest
from hubcache.serve import pull_counting
from hubcache.serve.pull_counting import SAME_PULL_SECONDS, PullCounter


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_repeated_requests_of_a_client_are_one_pull() -> None:
    clock = Clock()
    seen = PullCounter(clock)
    assert seen.is_new_pull("10.0.0.1", "digest")
    clock.now += SAME_PULL_SECONDS - 1
    assert not seen.is_new_pull("10.0.0.1", "digest")


def test_address_with_constant_requests_makes_several_pulls() -> None:
    """Of a fleet behind one address, some machine is always requesting."""
    clock = Clock()
    seen = PullCounter(clock)
    pulls = 0
    for _ in range(100):
        pulls += seen.is_new_pull("10.0.0.1", "digest")
        clock.now += SAME_PULL_SECONDS / 10
    assert pulls == 10


def test_later_requests_other_clients_and_other_content_are_new_pulls() -> None:
    clock = Clock()
    seen = PullCounter(clock)
    assert seen.is_new_pull("10.0.0.1", "digest")
    assert seen.is_new_pull("10.0.0.2", "digest")
    assert seen.is_new_pull("10.0.0.1", "other")
    clock.now += SAME_PULL_SECONDS
    assert seen.is_new_pull("10.0.0.1", "digest")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_counting, "MAX_CLIENTS", 10)
    seen = PullCounter(Clock())
    for number in range(1000):
        assert seen.is_new_pull(number)
        assert len(seen._recent) <= 10


def test_text_of_clients_is_not_kept() -> None:
    seen = PullCounter(Clock())
    agents = ["x" * 14_000 + str(number) for number in range(100)]
    assert all(seen.is_new_pull("image", ("10.0.0.1", agent)) for agent in agents)
    assert not any(seen.is_new_pull("image", ("10.0.0.1", agent)) for agent in agents)
    assert all(len(key) == 16 for key in seen._recent)
    assert seen.is_new_pull("\udcff")  # bytes that are not UTF-8, as mitmproxy decodes them
