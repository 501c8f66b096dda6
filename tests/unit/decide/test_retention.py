"""What the store keeps: what is asked for often. One-offs displace nothing, and no leap of the clock does."""

import itertools
import math

import pytest
from hubcache.decide.eviction import Decision, Eviction, Reason, Refusal
from hubcache.decide.retention import Retention
from hypothesis import given
from hypothesis import strategies as st
from support.retention import DAY, KEYS, KIB, NOW, SIZES, asked, days_pass, full, keys, never

GAPS = st.lists(st.floats(0, DAY), min_size=1, max_size=20)


# -- counting --------------------------------------------------------------------------------------------------------


@given(GAPS)
def test_the_count_is_the_sum_of_all_requests_decayed(gaps: list[float]) -> None:
    times = list(itertools.accumulate(gaps, initial=NOW))
    for resident in (False, True):
        retention = full(KIB) if resident else Retention[int]()
        for time in times:
            retention.record_request(0, time)
        each = [2.0 ** ((time - times[-1]) / retention.half_life) for time in times]
        first = each[0] if resident else 0.0
        assert retention.requests(0, times[-1]) == pytest.approx(sum(each) + first)


def test_what_was_never_asked_for_has_no_count_and_no_score() -> None:
    retention = Retention[int]()
    assert (retention.requests(1, NOW), retention.score(1, NOW), retention.row(1)) == (0.0, 0.0, None)


def test_looking_changes_nothing() -> None:
    retention = full(KIB)
    before = retention.clock(), retention.row(0)
    retention.requests(0, NOW + DAY), retention.score(0, NOW + DAY), retention.is_admitted(0, NOW + DAY)
    assert (retention.clock(), retention.row(0)) == before


def test_requests_before_a_long_absence_do_not_count() -> None:
    retention = Retention[int](half_life=1000 * DAY)
    now = asked(retention, 1, 5) and NOW
    for _ in range(30):
        now += DAY
        asked(retention, 2, 1, now)
    retention.record_request(1, now)
    assert retention.requests(1, now) == 1.0


def test_the_half_life_can_be_changed_at_any_time() -> None:
    retention = full(KIB, requests=4)
    retention.half_life = DAY
    assert retention.requests(0, NOW + DAY) == pytest.approx(2.0)


# -- admission -------------------------------------------------------------------------------------------------------


@given(SIZES, st.integers(0, 50))
def test_whatever_fits_is_welcome(size: int, spare: int) -> None:
    assert Retention[int]().admit(1, size, NOW, size + spare, never) == Decision()


@given(st.integers(1, 6), st.lists(st.floats(0, DAY), min_size=5, max_size=5))
def test_one_request_less_never_passes_however_fast_they_come(needed: int, gaps: list[float]) -> None:
    retention, now = full(100 * KIB), NOW
    retention.admit_after = needed
    for gap in gaps[: needed - 1]:
        retention.record_request(1, now := now + gap / 1000)
        refused = retention.admit(1, KIB, now, 0, never)
        assert refused == Decision(refusal=Refusal.RARE)
    retention.record_request(1, now)
    assert keys(retention.admit(1, KIB, now, 0, never)) == [0]


@pytest.mark.parametrize("days", [0, 1, 3, 7, 25])
def test_the_second_request_passes_also_when_it_comes_days_later(days: int) -> None:
    retention = full(100 * KIB)
    retention.record_request(1, NOW)
    now = days_pass(retention, days)
    retention.record_request(1, now)
    assert retention.is_admitted(1, now)
    assert keys(retention.admit(1, KIB, now, 0, never)) == [0]


def test_many_requests_long_apart_are_not_often() -> None:
    retention = Retention[int](admit_after=3)
    now = NOW
    for _ in range(10):
        retention.record_request(1, now)
        now = days_pass(retention, 14, now)
    assert not retention.is_admitted(1, now)


@given(st.lists(st.tuples(KEYS, SIZES), max_size=30))
def test_one_offs_displace_nothing_however_many_and_however_small(scan: list[tuple[int, int]]) -> None:
    retention = full(KIB, 100, 50 * KIB)
    for number, (_, size) in enumerate(scan, 100):
        retention.record_request(number, NOW + number)
        assert retention.admit(number, size + 1, NOW + number, 0, never).refusal is Refusal.RARE
    assert {0, 1, 2} == {key for key in range(200) if key in retention}


def test_without_admission_the_newcomer_is_measured_from_its_first_request() -> None:
    retention = full(100 * KIB)
    retention.admit_after = 1
    assert keys(retention.admit(asked(retention, 1, 1), KIB, NOW, 0, never)) == [0]


# -- who goes --------------------------------------------------------------------------------------------------------


def test_the_least_wanted_for_its_size_goes_first() -> None:
    retention = full(KIB, 100 * KIB, 100 * KIB)
    retention.record_request(2, NOW)
    assert keys(retention.evict(201 * KIB, NOW, never)) == [1, 2, 0]


def test_of_equals_the_one_that_was_not_asked_for_longest_goes_first() -> None:
    retention = full(KIB, KIB)
    retention.record_request(1, NOW + 1)
    retention.record_request(0, NOW + 1)
    assert keys(retention.evict(1, NOW + 1, never)) == [1]


def test_what_is_asked_for_more_than_the_newcomer_stays() -> None:
    retention = full(KIB, requests=5)
    newcomer = asked(retention, 1, 3)
    assert retention.admit(newcomer, KIB, NOW, 0, never) == Decision(refusal=Refusal.UNWANTED)
    assert 0 in retention


@given(st.lists(SIZES, max_size=12), SIZES, st.integers(2, 5), st.sets(KEYS), st.data())
def test_a_newcomer_gets_all_it_needs_from_less_wanted_ones_or_nothing(
    sizes: list[int], size: int, requests: int, kept: set[int], data: st.DataObject
) -> None:
    retention = full(*sizes)
    for key in data.draw(st.lists(st.integers(0, max(0, len(sizes) - 1)), max_size=12)) if sizes else []:
        retention.record_request(key, NOW)
    newcomer = asked(retention, 99, requests)
    scores = {key: retention.score(key, NOW) for key in range(len(sizes))}
    room = retention.admit(newcomer, size, NOW, 0, lambda key: key in kept)
    own = requests / math.sqrt(max(1, math.ceil(size / KIB)))
    if room.refusal:
        assert room.victims == ()
        assert sorted(key for key in range(len(sizes)) if key in retention) == list(range(len(sizes)))
        affordable = [sizes[key] for key in scores if key not in kept and scores[key] < own]
        assert sum(affordable) < size
    else:
        assert sum(victim.size for victim in room.victims) >= size
        assert sum(victim.size for victim in room.victims[:-1]) < max(1, size)
        assert not kept & set(keys(room))
        assert all(scores[key] < own for key in keys(room))
        assert all(key not in retention for key in keys(room))


@given(st.lists(SIZES, max_size=12), st.integers(0, 99 * KIB), st.sets(KEYS))
def test_room_without_a_newcomer_is_made_from_whatever_may_go(sizes: list[int], needed: int, kept: set[int]) -> None:
    retention = full(*sizes)
    room = retention.evict(needed, NOW, lambda key: key in kept)
    freed = sum(victim.size for victim in room.victims)
    assert not kept & set(keys(room))
    if freed < needed:
        assert room.refusal is Refusal.IN_USE
        assert set(keys(room)) == set(range(len(sizes))) - kept
    else:
        assert room.refusal is None


@given(st.lists(st.tuples(st.sampled_from("xyzm"), st.floats(0, DAY)), max_size=40))
def test_to_be_asked_for_once_more_never_does_harm(events: list[tuple[str, float]]) -> None:
    """Resident 1 is asked for whenever resident 0 is, and sometimes besides."""
    retention, now, number = full(*(9 * KIB for _ in range(2)), KIB, 2 * KIB), NOW, 99
    for event, gap in events:
        now += gap
        if event == "x":
            retention.record_request(0, now)
        if event in "xy":
            retention.record_request(1, now)
        if event == "z":
            number = asked(retention, number + 1, 3, now)
            retention.admit(number, 4 * KIB, now, 0, lambda key: key < 2)
        if event == "m":
            retention.evict(1, now, lambda key: key < 2)
        assert retention.score(1, now) >= retention.score(0, now)
    assert keys(retention.evict(1, now, lambda key: key > 1)) == [0]


def test_what_nobody_asks_for_any_more_falls_behind_as_the_store_turns_over() -> None:
    retention = full(*(100 * KIB for _ in range(10)))
    asked(retention, 0, 20)
    for newcomer in range(10, 1000):
        room = retention.admit(asked(retention, newcomer, 2), 100 * KIB, NOW, 0, never)
        if room.refusal is None:
            retention.record_stored(newcomer, 100 * KIB, NOW)
        if 0 not in retention:
            break
    assert 50 < newcomer < 999, "it goes, but not at once"


# -- the other reasons, and explanations -----------------------------------------------------------------------------


def test_an_eviction_is_explained() -> None:
    retention = full(4 * KIB, requests=2)
    later = NOW + 3600
    expected = Eviction(0, 4 * KIB, Reason.SPACE, 1.0, 2 * 2 ** (-3600 / retention.half_life), 3600.0)
    assert retention.evict(1, later, never).victims == (expected,)
    assert retention.clock()[0] == 1.0, "the clock goes up to what the victim had"


def test_what_nobody_asked_for_in_a_month_is_idle_unless_it_is_kept() -> None:
    retention = full(KIB, KIB, KIB, KIB)
    now = days_pass(retention, 29)
    assert retention.evict_idle(now, never) == []
    retention.record_request(3, now)
    now = days_pass(retention, 1, now)
    first = retention.evict_idle(now, lambda key: key == 1, limit=1)
    second = retention.evict_idle(now, lambda key: key == 1)
    assert [(one.key, one.reason) for one in first] == [(0, Reason.IDLE)]
    assert [(one.key, one.reason) for one in second] == [(2, Reason.IDLE)]
    assert first[0].idle == pytest.approx(30 * DAY)
    assert [key for key in range(4) if key in retention] == [1, 3]


def test_a_purge_is_explained_too_and_only_residents_can_be_purged() -> None:
    retention = full(KIB)
    purged = retention.purge(0, NOW)
    assert purged is not None
    assert (purged.key, purged.reason) == (0, Reason.PURGED)
    assert retention.purge(0, NOW) is None


def test_what_is_removed_keeps_its_history_and_can_be_taken_back() -> None:
    retention = full(KIB, requests=3)
    retention.evict(1, NOW, never)
    assert (retention.requests(0, NOW), len(retention), retention.absent) == (3.0, 0, 1)
    retention.record_stored(0, KIB, NOW)
    assert (0 in retention, retention.bytes, retention.absent) == (True, KIB, 0)


# -- cost ------------------------------------------------------------------------------------------------------------


def test_a_walk_looks_at_no_more_residents_than_it_passes() -> None:
    retention, looked = full(*(KIB for _ in range(5000))), list[int]()

    def keep(key: int) -> bool:
        looked.append(key)
        return key < 10

    assert keys(retention.evict(3 * KIB, NOW, keep)) == [10, 11, 12]
    assert looked == list(range(13))


def test_a_refusal_looks_at_nothing_that_is_wanted_more() -> None:
    retention = full(*(KIB for _ in range(5000)), requests=3)
    looked = list[int]()

    def keep(key: int) -> bool:
        looked.append(key)
        return False

    room = retention.admit(asked(retention, 9999, 2), KIB, NOW, 0, keep)
    assert (room.refusal, looked) == (Refusal.UNWANTED, [])
