"""What clients' words can grow is bounded; where a bound is hit, rights are forgotten, and never granted."""

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
    """Set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- moves -------------------------------------------------------------------------------------------------------------


def test_number_changes_with_a_move_of_the_same_thing_only() -> None:
    seen = ChangeNumbers()
    before, other = seen.current(HOST, REPO), seen.current(HOST, "library/other")
    seen.advance(HOST, REPO)
    assert seen.current(HOST, REPO) != before
    assert seen.current(HOST, "library/other") == other


def test_move_that_is_forgotten_still_makes_what_was_asked_before_it_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_numbers, "MAX_RECENT", 10)
    seen = ChangeNumbers()
    before = seen.current(HOST, REPO)
    seen.advance(HOST, REPO)
    after = seen.current(HOST, REPO)
    for number in range(100):
        seen.advance(HOST, f"r{number}")
        assert len(seen._recent) <= 10
    assert seen.current(HOST, REPO) not in (before, after)


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_answers_are_remembered_for_their_time_and_no_longer() -> None:
    clock = Clock()
    known = NegativeCache(clock)
    known.remember(HOST, REPO, "latest", MISSING, 30.0, 0)
    clock.now += 29
    with pytest.raises(ManifestUnknown):
        known.raise_remembered(HOST, REPO, "latest")
    clock.now += 2
    known.raise_remembered(HOST, REPO, "latest")


def test_remembered_errors_hold_no_frames_however_often_they_are_given() -> None:
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


def test_bytes_of_what_is_remembered_are_bounded_whatever_clients_and_upstreams_write(
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


def test_push_forgets_what_was_missing_in_its_repository_only() -> None:
    known = NegativeCache(Clock())
    since = known.raise_remembered(HOST, REPO, "latest")
    for repository in (REPO, "library/other"):
        known.remember(HOST, repository, "latest", MISSING, 30.0, 0)
    known.forget(HOST, REPO)
    known.remember(HOST, REPO, "latest", MISSING, 30.0, since)
    known.raise_remembered(HOST, REPO, "latest")
    with pytest.raises(ManifestUnknown):
        known.raise_remembered(HOST, "library/other", "latest")


# -- rights ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bounds are ten."""
    monkeypatch.setattr(visibility, "MAX_REPOSITORIES", 10)
    monkeypatch.setattr(gate_module, "MAX_AUTHORIZED", 10)


@pytest.mark.usefixtures("small")
async def test_yes_to_a_token_is_forgotten_when_there_are_many(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        access = Access(store, BestEffortWriter(store, lambda _: None))
        for number in range(50):
            await access.record_accepted(HOST, REPO, f"Bearer {number}")
            assert access.can_read_repository(HOST, REPO, f"Bearer {number}")
            assert len(access._authorized) <= 10
        assert not access.can_read_repository(HOST, REPO, "Bearer 0")


@pytest.mark.usefixtures("small")
async def test_verdicts_in_memory_are_bounded_and_the_stores_go_on(tmp_path: Path) -> None:
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
async def test_refusal_that_the_store_does_not_take_opens_nothing_when_it_is_forgotten(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:
        clock = Clock()
        access = Access(store, BestEffortWriter(store, lambda _: None), clock)
        for number in range(30):
            await access.record_accepted(HOST, f"r{number}", None)

        async def full(registry: str, repository: str, visibility: Visibility) -> None:
            raise StorageError("no room")

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


async def test_verdict_that_the_store_has_is_not_kept_as_unwritten(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        access = Access(store, BestEffortWriter(store, lambda _: None), Clock())
        await access.record_accepted(HOST, REPO, None)
        await access.record_refused(HOST, REPO, None)
        assert not access._visibility._unwritten
        assert store.registries.visibility(HOST, REPO) == Visibility(False, 1000.0)


async def test_names_that_never_were_public_leave_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 20)  # never opened
    access = Access(store, BestEffortWriter(store, lambda _: None), Clock())
    for number in range(100):
        await access.record_refused(HOST, f"r{number}", None)
        await access.expire_visibility(HOST, f"r{number}", MISSING)
    assert not access._visibility._recent
    assert not access._visibility._unwritten
