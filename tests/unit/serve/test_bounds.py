"""Caches that clients can fill are bounded; at a bound, access is lost and never granted."""

from pathlib import Path

import pytest
from hubcache.decide.records import Visibility
from hubcache.oci.errors import ManifestUnknown, StorageError, Unauthorized
from hubcache.serve import access as gate_module
from hubcache.serve import change_numbers, negative_cache, visibility
from hubcache.serve.access import Access
from hubcache.serve.best_effort import BestEffortWriter
from hubcache.serve.change_numbers import ChangeNumbers
from hubcache.serve.negative_cache import NegativeCache
from hubcache.store.store import Store
from support.stores import opened_store

HOST, REPO = "registry-1.docker.io", "library/app"
MISSING = ManifestUnknown("manifest unknown", {"upstream_code": None})


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- change numbers ----------------------------------------------------------------------------------------------------


def test_change_number_changes_for_its_key_only() -> None:
    seen = ChangeNumbers()
    before, other = seen.current(HOST, REPO), seen.current(HOST, "library/other")
    seen.advance(HOST, REPO)
    assert seen.current(HOST, REPO) != before
    assert seen.current(HOST, "library/other") == other


def test_dropped_change_still_invalidates_earlier_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_numbers, "MAX_RECENT", 10)
    seen = ChangeNumbers()
    before = seen.current(HOST, REPO)
    seen.advance(HOST, REPO)
    after = seen.current(HOST, REPO)
    for number in range(100):
        seen.advance(HOST, f"r{number}")
        assert len(seen._recent) <= 10
    assert seen.current(HOST, REPO) not in (before, after)


# -- error answers -----------------------------------------------------------------------------------------------------


def test_errors_are_remembered_for_their_lifetime() -> None:
    clock = Clock()
    known = NegativeCache(clock)
    known.remember(HOST, REPO, "latest", MISSING, 30.0, 0)
    clock.now += 29
    with pytest.raises(ManifestUnknown):
        known.raise_remembered(HOST, REPO, "latest")
    clock.now += 2
    known.raise_remembered(HOST, REPO, "latest")


def test_remembered_errors_hold_no_stack_frames() -> None:
    known = NegativeCache(Clock())
    try:
        raise MISSING
    except ManifestUnknown as error:
        known.remember(HOST, REPO, "latest", error, 30.0, 0)
    for _ in range(3):
        with pytest.raises(ManifestUnknown) as caught:
            known.raise_remembered(HOST, REPO, "latest")
        assert caught.value.body() == MISSING.body()
    (value,) = known._errors.values()
    assert value[1].__traceback__ is None


def test_bytes_of_remembered_errors_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(negative_cache, "MAX_BYTES", 1 << 20)
    known = NegativeCache(Clock())
    for number in range(3000):
        error = Unauthorized("no", "Bearer " + "x" * 8000, {"upstream_message": "y" * 500})
        known.remember(HOST, f"r{number}", "a/b," * 2000 + str(number), error, 30.0, 0)
    assert 0 < len(known._errors) <= 1 << 7
    assert sum(len(part) for key in known._errors for part in key) < 1 << 14
    with pytest.raises(Unauthorized):
        known.raise_remembered(HOST, "r2999", "a/b," * 2000 + "2999")


def test_push_forgets_errors_of_its_repository_only() -> None:
    known = NegativeCache(Clock())
    since = known.raise_remembered(HOST, REPO, "latest")
    for repository in (REPO, "library/other"):
        known.remember(HOST, repository, "latest", MISSING, 30.0, 0)
    known.forget(HOST, REPO)
    known.remember(HOST, REPO, "latest", MISSING, 30.0, since)
    known.raise_remembered(HOST, REPO, "latest")
    with pytest.raises(ManifestUnknown):
        known.raise_remembered(HOST, "library/other", "latest")


# -- access ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set all bounds to ten."""
    monkeypatch.setattr(visibility, "MAX_REPOSITORIES", 10)
    monkeypatch.setattr(gate_module, "MAX_AUTHORIZED", 10)


@pytest.mark.usefixtures("small")
async def test_number_of_accepted_tokens_is_bounded(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        access = Access(store, BestEffortWriter(store, lambda _: None))
        for number in range(50):
            await access.record_accepted(HOST, REPO, f"Bearer {number}")
            assert access.can_read_repository(HOST, REPO, f"Bearer {number}")
            assert len(access._authorized) <= 10
        assert not access.can_read_repository(HOST, REPO, "Bearer 0")


@pytest.mark.usefixtures("small")
async def test_visibility_in_memory_is_bounded_and_the_stored_one_is_used(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        clock = Clock()
        access = Access(store, BestEffortWriter(store, lambda _: None), clock)
        for number in range(50):
            await access.record_accepted(HOST, f"r{number}", None)
        await access.record_refused(HOST, "r0", None)
        assert len(access._visibility._recent) <= 10
        assert not access.can_read_repository(HOST, "r0", None)
        assert access.can_read_repository(HOST, "r1", None)
        for number in range(50, 100):
            await access.record_accepted(HOST, f"r{number}", None)
        assert not access.can_read_repository(HOST, "r0", None)
        assert access.can_read_repository(HOST, "r1", None)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", ["refused", "doubted"])
async def test_dropped_refusal_that_is_not_stored_makes_no_repository_public(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:
        clock = Clock()
        access = Access(store, BestEffortWriter(store, lambda _: None), clock)
        for number in range(30):
            await access.record_accepted(HOST, f"r{number}", None)

        async def full(registry: str, repository: str, visibility: Visibility) -> None:
            raise StorageError("no space")

        monkeypatch.setattr(store.registries, "put_visibility", full)
        clock.now += 10
        for number in range(30):
            if how == "refused":
                await access.record_refused(HOST, f"r{number}", None)
            else:
                await access.expire_visibility(HOST, f"r{number}", MISSING)
            assert len(access._visibility._unwritten) <= 10
        assert not [number for number in range(30) if access.can_read_repository(HOST, f"r{number}", None)]
        clock.now += 10
        await access.record_accepted(HOST, "r0", None)
        assert access.can_read_repository(HOST, "r0", None)


async def test_stored_visibility_is_not_kept_as_unwritten(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        access = Access(store, BestEffortWriter(store, lambda _: None), Clock())
        await access.record_accepted(HOST, REPO, None)
        await access.record_refused(HOST, REPO, None)
        assert not access._visibility._unwritten
        assert store.registries.visibility(HOST, REPO) == Visibility(False, 1000.0)


async def test_repositories_that_never_were_public_are_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 20)  # the store is not open
    access = Access(store, BestEffortWriter(store, lambda _: None), Clock())
    for number in range(100):
        await access.record_refused(HOST, f"r{number}", None)
        await access.expire_visibility(HOST, f"r{number}", MISSING)
    assert not access._visibility._recent
    assert not access._visibility._unwritten
