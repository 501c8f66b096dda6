"""What the store keeps: what is asked for often. One-offs displace nothing, and no leap of the clock does."""

import itertools
import math

import pytest
from hubcache.decide.frequency import LONGEST_STEP, Eviction, Reason, Refusal, Retention, Room
from hypothesis import given
from hypothesis import strategies as st

NOW = 1.7e9
DAY = 86400.0
KIB = 1024
GAPS = st.lists(st.floats(0, DAY), min_size=1, max_size=20)
KEYS = st.integers(0, 9)
SIZES = st.integers(0, 50) | st.integers(0, 50 * KIB)


def never(_: int) -> bool:
    return False


def full(*sizes: int, requests: int = 1) -> Retention[int]:
    """A store with residents 0, 1, … of these sizes, asked for so many times each."""
    retention = Retention[int]()
    for key, size in enumerate(sizes):
        for _ in range(requests):
            retention.requested(key, NOW)
        retention.stored(key, size, NOW)
    return retention


def asked(retention: Retention[int], key: int, times: int, now: float = NOW) -> int:
    for _ in range(times):
        retention.requested(key, now)
    return key


def keys(room: Room[int]) -> list[int]:
    return [victim.key for victim in room.victims]


# -- counting --------------------------------------------------------------------------------------------------------


@given(GAPS)
def test_the_count_is_the_sum_of_all_requests_decayed(gaps: list[float]) -> None:
    times = list(itertools.accumulate(gaps, initial=NOW))
    for resident in (False, True):
        retention = full(KIB) if resident else Retention[int]()
        for time in times:
            retention.requested(0, time)
        each = [2.0 ** ((time - times[-1]) / retention.half_life) for time in times]
        first = each[0] if resident else 0.0
        assert retention.requests(0, times[-1]) == pytest.approx(sum(each) + first)


def test_what_was_never_asked_for_has_no_count_and_no_score() -> None:
    retention = Retention[int]()
    assert (retention.requests(1, NOW), retention.score(1, NOW), retention.row(1)) == (0.0, 0.0, None)


def test_looking_changes_nothing() -> None:
    retention = full(KIB)
    before = retention.clock(), retention.row(0)
    retention.requests(0, NOW + DAY), retention.score(0, NOW + DAY), retention.asked_enough(0, NOW + DAY)
    assert (retention.clock(), retention.row(0)) == before


def days_pass(retention: Retention[int], days: int, now: float = NOW) -> float:
    """The store looks at the time every few hours."""
    for _ in range(4 * days):
        now += DAY / 4
        retention.forget(now)
    return now


def test_requests_before_a_long_absence_do_not_count() -> None:
    retention = Retention[int](half_life=1000 * DAY)
    now = asked(retention, 1, 5) and NOW
    for _ in range(30):
        now += DAY
        asked(retention, 2, 1, now)
    retention.requested(1, now)
    assert retention.requests(1, now) == 1.0


def test_the_half_life_can_be_changed_at_any_time() -> None:
    retention = full(KIB, requests=4)
    retention.half_life = DAY
    assert retention.requests(0, NOW + DAY) == pytest.approx(2.0)


# -- admission -------------------------------------------------------------------------------------------------------


@given(SIZES, st.integers(0, 50))
def test_whatever_fits_is_welcome(size: int, spare: int) -> None:
    assert Retention[int]().admit(1, size, NOW, size + spare, never) == Room()


@given(st.integers(1, 6), st.lists(st.floats(0, DAY), min_size=5, max_size=5))
def test_one_request_less_never_passes_however_fast_they_come(needed: int, gaps: list[float]) -> None:
    retention, now = full(100 * KIB), NOW
    retention.admit_after = needed
    for gap in gaps[: needed - 1]:
        retention.requested(1, now := now + gap / 1000)
        refused = retention.admit(1, KIB, now, 0, never)
        assert refused == Room(refusal=Refusal.RARE)
    retention.requested(1, now)
    assert keys(retention.admit(1, KIB, now, 0, never)) == [0]


@pytest.mark.parametrize("days", [0, 1, 3, 7, 25])
def test_the_second_request_passes_also_when_it_comes_days_later(days: int) -> None:
    retention = full(100 * KIB)
    retention.requested(1, NOW)
    now = days_pass(retention, days)
    retention.requested(1, now)
    assert retention.asked_enough(1, now)
    assert keys(retention.admit(1, KIB, now, 0, never)) == [0]


def test_many_requests_long_apart_are_not_often() -> None:
    retention = Retention[int](admit_after=3)
    now = NOW
    for _ in range(10):
        retention.requested(1, now)
        now = days_pass(retention, 14, now)
    assert not retention.asked_enough(1, now)


@given(st.lists(st.tuples(KEYS, SIZES), max_size=30))
def test_one_offs_displace_nothing_however_many_and_however_small(scan: list[tuple[int, int]]) -> None:
    retention = full(KIB, 100, 50 * KIB)
    for number, (_, size) in enumerate(scan, 100):
        retention.requested(number, NOW + number)
        assert retention.admit(number, size + 1, NOW + number, 0, never).refusal is Refusal.RARE
    assert {0, 1, 2} == {key for key in range(200) if key in retention}


def test_without_admission_the_newcomer_is_measured_from_its_first_request() -> None:
    retention = full(100 * KIB)
    retention.admit_after = 1
    assert keys(retention.admit(asked(retention, 1, 1), KIB, NOW, 0, never)) == [0]


# -- who goes --------------------------------------------------------------------------------------------------------


def test_the_least_wanted_for_its_size_goes_first() -> None:
    retention = full(KIB, 100 * KIB, 100 * KIB)
    retention.requested(2, NOW)
    assert keys(retention.make_room(201 * KIB, NOW, never)) == [1, 2, 0]


def test_of_equals_the_one_that_was_not_asked_for_longest_goes_first() -> None:
    retention = full(KIB, KIB)
    retention.requested(1, NOW + 1)
    retention.requested(0, NOW + 1)
    assert keys(retention.make_room(1, NOW + 1, never)) == [1]


def test_what_is_asked_for_more_than_the_newcomer_stays() -> None:
    retention = full(KIB, requests=5)
    newcomer = asked(retention, 1, 3)
    assert retention.admit(newcomer, KIB, NOW, 0, never) == Room(refusal=Refusal.UNWANTED)
    assert 0 in retention


@given(st.lists(SIZES, max_size=12), SIZES, st.integers(2, 5), st.sets(KEYS), st.data())
def test_a_newcomer_gets_all_it_needs_from_less_wanted_ones_or_nothing(
    sizes: list[int], size: int, requests: int, kept: set[int], data: st.DataObject
) -> None:
    retention = full(*sizes)
    for key in data.draw(st.lists(st.integers(0, max(0, len(sizes) - 1)), max_size=12)) if sizes else []:
        retention.requested(key, NOW)
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
    room = retention.make_room(needed, NOW, lambda key: key in kept)
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
            retention.requested(0, now)
        if event in "xy":
            retention.requested(1, now)
        if event == "z":
            number = asked(retention, number + 1, 3, now)
            retention.admit(number, 4 * KIB, now, 0, lambda key: key < 2)
        if event == "m":
            retention.make_room(1, now, lambda key: key < 2)
        assert retention.score(1, now) >= retention.score(0, now)
    assert keys(retention.make_room(1, now, lambda key: key > 1)) == [0]


def test_what_nobody_asks_for_any_more_falls_behind_as_the_store_turns_over() -> None:
    retention = full(*(100 * KIB for _ in range(10)))
    asked(retention, 0, 20)
    for newcomer in range(10, 1000):
        room = retention.admit(asked(retention, newcomer, 2), 100 * KIB, NOW, 0, never)
        if room.refusal is None:
            retention.stored(newcomer, 100 * KIB, NOW)
        if 0 not in retention:
            break
    assert 50 < newcomer < 999, "it goes, but not at once"


# -- the other reasons, and explanations -----------------------------------------------------------------------------


def test_an_eviction_is_explained() -> None:
    retention = full(4 * KIB, requests=2)
    later = NOW + 3600
    expected = Eviction(0, 4 * KIB, Reason.SPACE, 1.0, 2 * 2 ** (-3600 / retention.half_life), 3600.0)
    assert retention.make_room(1, later, never).victims == (expected,)
    assert retention.clock()[0] == 1.0, "the clock goes up to what the victim had"


def test_what_nobody_asked_for_in_a_month_is_idle_unless_it_is_kept() -> None:
    retention = full(KIB, KIB, KIB, KIB)
    now = days_pass(retention, 29)
    assert retention.idle(now, never) == []
    retention.requested(3, now)
    now = days_pass(retention, 1, now)
    first = retention.idle(now, lambda key: key == 1, most=1)
    second = retention.idle(now, lambda key: key == 1)
    assert [(one.key, one.reason, one.idle) for one in first + second] == [
        (0, Reason.IDLE, pytest.approx(30 * DAY)),
        (2, Reason.IDLE, pytest.approx(30 * DAY)),
    ]
    assert [key for key in range(4) if key in retention] == [1, 3]


def test_a_purge_is_explained_too_and_only_residents_can_be_purged() -> None:
    retention = full(KIB)
    purged = retention.purge(0, NOW)
    assert purged is not None
    assert (purged.key, purged.reason) == (0, Reason.PURGED)
    assert retention.purge(0, NOW) is None


def test_what_is_removed_keeps_its_history_and_can_be_taken_back() -> None:
    retention = full(KIB, requests=3)
    retention.make_room(1, NOW, never)
    assert (retention.requests(0, NOW), len(retention), retention.rows) == (3.0, 0, 1)
    retention.stored(0, KIB, NOW)
    assert (0 in retention, retention.bytes, retention.rows) == (True, KIB, 0)


# -- history ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=60), st.integers(0, 5))
def test_the_history_never_has_more_rows_than_it_may(events: list[tuple[int, bool]], rows: int) -> None:
    retention = Retention[int](history=rows)
    for key, stored in events:
        retention.requested(key, NOW)
        if stored:
            retention.stored(key, 1, NOW)
        else:
            retention.removed(key)
        assert retention.rows <= rows


def test_a_full_history_forgets_what_was_not_asked_for_longest() -> None:
    retention = Retention[int](history=2)
    for key in (1, 2, 1, 3):
        retention.requested(key, NOW)
    assert [key for key in range(5) if retention.row(key)] == [1, 3]


def test_history_that_became_too_long_is_cut_when_it_is_cleaned() -> None:
    retention = Retention[int]()
    for key in range(10):
        retention.requested(key, NOW)
    retention.history = 3
    retention.forget(NOW)
    assert retention.rows == 3


def test_after_a_month_the_history_of_what_is_absent_is_forgotten() -> None:
    retention = full(KIB)
    asked(retention, 1, 9)
    now = days_pass(retention, 29)
    assert retention.requests(1, now) > 0
    now = days_pass(retention, 1, now)
    assert (retention.row(1), 0 in retention) == (None, True)


# -- leaps of the clock ----------------------------------------------------------------------------------------------


@given(st.floats(0, 1e12), st.booleans())
def test_a_clock_that_goes_back_makes_nothing_more_wanted_and_nothing_younger(back: float, resident: bool) -> None:
    retention = full(KIB) if resident else Retention[int]()
    asked(retention, 0, 5)
    before, score = retention.requests(0, NOW), retention.score(0, NOW)
    assert retention.requests(0, NOW - back) == before
    retention.forget(NOW - back)
    assert (retention.requests(0, NOW - back), retention.score(0, NOW - back)) == (before, score)
    assert retention.requests(0, NOW - back + DAY) == pytest.approx(before * 2 ** (-DAY / retention.half_life))


@given(st.floats(DAY, 1e12))
def test_a_leap_forward_counts_as_a_day(leap: float) -> None:
    retention = full(KIB, KIB, requests=4)
    asked(retention, 2, 4)
    later = NOW + leap
    assert retention.idle(later, never) == []
    retention.forget(later)
    for key in range(3):
        assert retention.requests(key, later) == pytest.approx(4 * 2 ** (-LONGEST_STEP / retention.half_life))
    retention.forget(NOW)
    assert retention.requests(0, NOW + DAY) == pytest.approx(4 * 2 ** (-2 * LONGEST_STEP / retention.half_life))


def test_a_year_switched_off_throws_out_nothing() -> None:
    old = full(KIB, requests=4)
    asked(old, 1, 4)
    retention = Retention[int]()
    retention.restore(old.clock(), rows(old).items())
    later = NOW + 365 * DAY
    assert retention.idle(later, never) == []
    retention.forget(later)
    assert retention.requests(1, later) == retention.requests(0, later) > 3


# -- persistence -----------------------------------------------------------------------------------------------------


def rows(retention: Retention[int]) -> dict[int, tuple[int, float, float, float, bool]]:
    return {key: row for key in range(200) if (row := retention.row(key))}


EVENTS = st.tuples(
    st.sampled_from(["ask", "store", "remove", "room", "clean", "admit", "write"]),
    KEYS,
    SIZES,
    st.floats(-DAY, 9 * DAY),
)


@given(st.lists(EVENTS, max_size=60))
def test_the_account_is_right_and_what_is_written_behind_is_all_that_is_known(
    events: list[tuple[str, int, int, float]],
) -> None:
    retention, now = Retention[int](history=5), NOW
    disk: dict[int, int] = {}
    database: dict[int, tuple[int, float, float, float, bool]] = {}
    clock = retention.clock()[0]
    for event, key, size, gap in events:
        now += gap
        room = Room[int]()
        if event == "ask":
            retention.requested(key, now)
        elif event == "store":
            retention.stored(key, size, now)
            disk[key] = size
        elif event == "remove":
            retention.removed(key)
            disk.pop(key, None)
        elif event == "room":
            room = retention.make_room(size, now, lambda other: other % 3 == 0)
        elif event == "admit":
            room = retention.admit(key + 100, size, now, 0, never)
        elif event == "clean":
            room = Room(tuple(retention.idle(now, never)))
            retention.forget(now)
        else:
            for changed in retention.dirty():
                row = retention.row(changed)
                if row is None:
                    database.pop(changed, None)
                else:
                    database[changed] = row
            assert database == rows(retention)
        for victim in room.victims:
            assert disk.pop(victim.key) == victim.size
        assert retention.bytes == sum(disk.values())
        assert {other for other in range(10) if other in retention} == set(disk)
        assert len(retention) == len(disk)
        assert retention.rows <= 5
        assert retention.clock()[0] >= clock
        clock = retention.clock()[0]


@given(st.lists(EVENTS, max_size=40), st.lists(st.sampled_from(range(10)), max_size=5))
def test_a_restored_state_decides_like_the_one_that_was_persisted(
    events: list[tuple[str, int, int, float]], after: list[int]
) -> None:
    old, now = Retention[int](), NOW
    for event, key, size, gap in events:
        now += gap
        old.requested(key, now)
        if event == "store":
            old.stored(key, size, now)
        if event == "room":
            old.make_room(size, now, never)
    new = Retention[int]()
    new.restore(old.clock(), rows(old).items())
    assert (new.clock(), rows(new), new.bytes) == (old.clock(), rows(old), old.bytes)
    assert new.dirty() == set()
    for key in after:
        now += 3600
        for retention in (old, new):
            retention.requested(key, now)
        assert new.row(key) == old.row(key)
    first, second = (retention.make_room(10**9, now, never).victims for retention in (old, new))
    assert [victim.score for victim in first] == [victim.score for victim in second]
    assert set(first) == set(second)


def test_rows_that_could_not_be_written_are_told_again() -> None:
    retention = full(KIB, KIB)
    told = retention.dirty()
    assert (told, retention.dirty()) == ({0, 1}, set())
    retention.failed(told)
    retention.requested(2, NOW)
    assert retention.dirty() == {0, 1, 2}


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_damaged_row_is_left_out_and_a_damaged_clock_replaced(broken: float) -> None:
    good = (KIB, 2.0, 50.0, 7.0, True)
    retention = Retention[int]()
    retention.restore(
        (broken, broken, NOW),
        [
            (1, good),
            (2, (KIB, broken, 50.0, 7.0, True)),
            (3, (KIB, 2.0, broken, 7.0, False)),
            (4, (-1, 2.0, 50.0, broken, True)),
            (5, (KIB, -1.0, 50.0, 7.0, True)),
        ],
    )
    assert rows(retention) == {1: good}
    assert retention.clock() == (7.0, 50.0, None)
    assert retention.bytes == KIB


def test_a_row_from_the_future_is_from_now() -> None:
    retention = Retention[int]()
    retention.restore((0.0, 10.0, NOW), [(1, (0, 2.0, 1e9, 0.0, False)), (2, (0, 2.0, 1e9, 0.0, True))])
    assert retention.requests(1, NOW) == retention.requests(2, NOW) == 2.0


def test_a_store_without_history_counts_what_it_has_as_asked_for_once() -> None:
    retention = Retention[int]()
    retention.restore(None, [])
    for key in range(3):
        retention.stored(key, KIB << key, NOW)
    assert [retention.requests(key, NOW) for key in range(3)] == [1.0, 1.0, 1.0]
    assert keys(retention.make_room(1, NOW, never)) == [2]


# -- cost ------------------------------------------------------------------------------------------------------------


def test_a_walk_looks_at_no_more_residents_than_it_passes() -> None:
    retention, looked = full(*(KIB for _ in range(5000))), list[int]()

    def keep(key: int) -> bool:
        looked.append(key)
        return key < 10

    assert keys(retention.make_room(3 * KIB, NOW, keep)) == [10, 11, 12]
    assert looked == list(range(13))


def test_a_refusal_looks_at_nothing_that_is_wanted_more() -> None:
    retention = full(*(KIB for _ in range(5000)), requests=3)
    looked = list[int]()
    room = retention.admit(asked(retention, 9999, 2), KIB, NOW, 0, lambda key: bool(looked.append(key)))
    assert (room.refusal, looked) == (Refusal.UNWANTED, [])
