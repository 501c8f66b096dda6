"""The account of the bucket's bytes: its encoding, grants, and what a sweep changes."""

import json

import pytest
from hubcache.decide.bucket_plan import RankClock
from hubcache.fleet.sweep_state import GRANT_SECONDS, Grant, SweepState, Swept

NOW = 1.7e9
CAP = 1_000_000
SWEPT = Swept(NOW, "one", {"blob": 500_000, "tag": 90}, {"blob": 3, "tag": 2}, 7, 70_000, 1.5)


def state(used: int = 500_000, grants: dict[str, Grant] | None = None, landed: int = 0) -> SweepState:
    return SweepState("id", CAP, used, landed, SWEPT, RankClock(((NOW, 0.5),)), grants or {})


def test_state_is_restored_from_its_encoding() -> None:
    before = state(grants={"one": Grant(3, NOW), "two": Grant(0, NOW + 0.5)}, landed=12)
    assert SweepState.decode(before.encode()) == before
    assert before.encode() != before.encode(), "equal contents would have equal entity tags"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"cap": "large"},
        {"cap": True},
        {"used": None},
        {"grants": []},
        {"grants": {"one": 5}},
        {"grants": {"one": [5, "now"]}},
        {"clock": [[1]]},
        {"clock": {}},
        {"swept": {"blob": [1]}},
        {"deleted": 5},
        {"at": float("nan")},
        {"at": 1e308},
        {"at": 10**400},
        {"at": -1},
        {"seconds": float("inf")},
        {"by": "\ud800"},
        {"by": "x" * 201},
        {"id": 5},
        {"cap": float("inf")},
        {"cap": 10**400},
        {"used": -1},
        {"landed": 1 << 63},
        {"grants": {"one": [10**400, NOW]}},
        {"grants": {"one": [-5, NOW]}},
        {"grants": {"one\n": [5, NOW]}},
        {"clock": [[NOW, float("inf")]]},
        {"clock": [[10**400, 1]]},
        {"swept": {"blob": [float("inf"), 1]}},
        {"swept": {"blob": [1, -1]}},
        {"deleted": [float("inf"), 1]},
    ],
)
def test_state_that_this_version_cannot_read_is_absent(change: dict[str, object]) -> None:
    assert SweepState.decode(json.dumps(json.loads(state().encode()) | change).encode()) is None
    assert SweepState.decode(b"{") is None


def test_free_bytes_are_those_that_are_neither_used_nor_granted_nor_kept_for_small_objects() -> None:
    before = state(grants={"one": Grant(100_000, NOW)})
    assert before.free(CAP) == CAP - 20_000 - 600_000
    assert before.free(700_000) == 700_000 - 14_000 - 600_000
    assert before.free(10 * CAP) == before.free(CAP)
    assert before.free(100_000) == 0


def test_grant_moves_bytes_without_changing_their_sum() -> None:
    before = state()
    after = before.with_grant("one", kept=0, added=1000, ended=0, now=NOW)
    assert after.grants == {"one": Grant(1000, NOW)}
    later = after.with_grant("one", kept=600, added=0, ended=400, now=NOW + 1)
    assert later.grants == {"one": Grant(600, NOW + 1)}
    assert (later.used, later.landed, later.free(CAP)) == (before.used + 400, 400, after.free(CAP))
    last = later.with_grant("one", kept=0, added=0, ended=0, now=NOW + 2)
    assert (last.grants, last.free(CAP)) == ({}, before.free(CAP) - 400)


def test_sweep_counts_uploads_that_ended_since_its_list_began() -> None:
    before = state(used=600_000, landed=50)
    current = before.with_grant("one", 0, 100, 0, NOW).with_grant("one", 0, 0, 100, NOW)
    after = current.after_sweep(before, 400_000, CAP, before.clock, SWEPT)
    assert (after.used, after.landed, after.sweep) == (400_100, 150, SWEPT)


def test_sweep_gives_up_grants_that_had_expired_when_it_began() -> None:
    old = NOW - GRANT_SECONDS - 1
    before = state(grants={"dead": Grant(10, old), "renewed": Grant(20, old), "live": Grant(30, NOW - 60)})
    current = before.with_grant("renewed", 20, 5, 0, NOW).with_grant("new", 0, 40, 0, NOW)
    after = current.after_sweep(before, 0, CAP, before.clock, SWEPT)
    assert after.grants == {"renewed": Grant(25, NOW), "live": Grant(30, NOW - 60), "new": Grant(40, NOW)}


@pytest.mark.parametrize(("mine", "other"), [(1.0, 2.0), (2.0, 1.0)])
def test_clock_of_two_sweeps_at_once_is_the_higher_one(mine: float, other: float) -> None:
    before = state()
    current = before.after_sweep(before, 0, CAP, RankClock(((NOW, other),)), SWEPT)
    assert current.after_sweep(before, 0, CAP, RankClock(((NOW, mine),)), SWEPT).clock.value == 2.0


def test_all_free_bytes_count_as_granted_for_a_while_when_the_account_was_lost() -> None:
    new = SweepState.begun(100_000, CAP, RankClock(), SWEPT, is_lost=False)
    assert (new.used, new.grants) == (100_000, {})
    lost = SweepState.begun(100_000, CAP, RankClock(), SWEPT, is_lost=True)
    assert lost.free(CAP) == 0
    later = Swept(NOW + GRANT_SECONDS + 1, "two")
    assert lost.after_sweep(lost, 100_000, CAP, RankClock(), later).free(CAP) == new.free(CAP)
