"""The visibility of a repository holds from the registry's answer on, and not from when the cache received it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.decide.policy import VISIBILITY_LIFETIME
from hubcache.decide.records import Visibility
from hubcache.serve.access import Access
from hubcache.serve.best_effort import BestEffortWriter
from hubcache.store.store import Store
from support.stores import opened_store

HOST, REPO = "registry-1.docker.io", "library/app"
NOW = 1_000_000.0


class Clock:
    """A clock that the test sets."""

    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(store: Store, clock: Clock) -> Access:
    return Access(store, BestEffortWriter(store, lambda _: None), clock)


async def test_visibility_expires_a_lifetime_after_the_answer(access: Access, clock: Clock, store: Store) -> None:
    await access.record_accepted(HOST, REPO, None, NOW - 1000)
    assert store.registries.visibility(HOST, REPO) == Visibility(True, NOW - 1000)
    clock.now = NOW - 1001 + VISIBILITY_LIFETIME
    assert access.can_read_repository(HOST, REPO, None)
    clock.now = NOW - 1000 + VISIBILITY_LIFETIME
    assert not access.can_read_repository(HOST, REPO, None)


async def test_answer_older_than_the_lifetime_makes_no_repository_public(access: Access) -> None:
    await access.record_accepted(HOST, REPO, None, NOW - VISIBILITY_LIFETIME)
    assert not access.can_read_repository(HOST, REPO, None)


async def test_older_answer_does_not_make_a_refused_repository_public(access: Access, clock: Clock) -> None:
    await access.record_accepted(HOST, REPO, None, NOW - 20)
    await access.record_refused(HOST, REPO, None)
    clock.now += 5
    assert not await access.record_accepted(HOST, REPO, None, NOW - 10)
    assert not access.can_read_repository(HOST, REPO, None)
    assert await access.record_accepted(HOST, REPO, None, NOW + 1)
    assert access.can_read_repository(HOST, REPO, None)


async def test_older_answer_does_not_shorten_what_is_known(access: Access, clock: Clock) -> None:
    await access.record_accepted(HOST, REPO, None, NOW)
    assert await access.record_accepted(HOST, REPO, None, NOW - 1000)
    clock.now = NOW - 1 + VISIBILITY_LIFETIME
    assert access.can_read_repository(HOST, REPO, None)


async def test_answer_from_the_future_counts_from_now(access: Access, clock: Clock) -> None:
    await access.record_accepted(HOST, REPO, None, NOW + 5000)
    assert access.can_read_repository(HOST, REPO, None)
    clock.now = NOW + VISIBILITY_LIFETIME
    assert not access.can_read_repository(HOST, REPO, None)


async def test_new_answer_counts_after_the_clock_was_set_back(access: Access, clock: Clock) -> None:
    await access.record_accepted(HOST, REPO, None, NOW)
    clock.now = NOW - 86400
    await access.record_accepted(HOST, REPO, None, NOW - 86400)
    assert access.can_read_repository(HOST, REPO, None)
