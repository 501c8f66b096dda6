"""The state of the retention policy: bounded, proof against leaps of the clock, and the same after a restart."""

import math

import pytest
from hubcache.decide.eviction import Decision
from hubcache.decide.retention import MAX_STEP, Retention
from hubcache.decide.retention_rows import Row
from hypothesis import given
from hypothesis import strategies as st
from support.retention import DAY, KEYS, KIB, NOW, SIZES, asked, days_pass, full, keys, never, rows

# -- history ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=60), st.integers(0, 5))
def test_the_history_never_has_more_rows_than_it_may(events: list[tuple[int, bool]], rows: int) -> None:
    retention = Retention[int](max_absent=rows)
    for key, stored in events:
        retention.record_request(key, NOW)
        if stored:
            retention.record_stored(key, 1, NOW)
        else:
            retention.record_removed(key)
        assert retention.absent <= rows


def test_a_full_history_forgets_what_was_not_asked_for_longest() -> None:
    retention = Retention[int](max_absent=2)
    for key in (1, 2, 1, 3):
        retention.record_request(key, NOW)
    assert [key for key in range(5) if retention.row(key)] == [1, 3]


def test_history_that_became_too_long_is_cut_when_it_is_cleaned() -> None:
    retention = Retention[int]()
    for key in range(10):
        retention.record_request(key, NOW)
    retention.max_absent = 3
    retention.forget_absent(NOW)
    assert retention.absent == 3


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
    retention.forget_absent(NOW - back)
    assert (retention.requests(0, NOW - back), retention.score(0, NOW - back)) == (before, score)
    assert retention.requests(0, NOW - back + DAY) == pytest.approx(before * 2 ** (-DAY / retention.half_life))


@given(st.floats(DAY, 1e12))
def test_a_leap_forward_counts_as_a_day(leap: float) -> None:
    retention = full(KIB, KIB, requests=4)
    asked(retention, 2, 4)
    later = NOW + leap
    assert retention.evict_idle(later, never) == []
    retention.forget_absent(later)
    for key in range(3):
        assert retention.requests(key, later) == pytest.approx(4 * 2 ** (-MAX_STEP / retention.half_life))
    retention.forget_absent(NOW)
    assert retention.requests(0, NOW + DAY) == pytest.approx(4 * 2 ** (-2 * MAX_STEP / retention.half_life))


def test_a_year_switched_off_throws_out_nothing() -> None:
    old = full(KIB, requests=4)
    asked(old, 1, 4)
    retention = Retention[int]()
    retention.restore(old.clock(), rows(old))
    later = NOW + 365 * DAY
    assert retention.evict_idle(later, never) == []
    retention.forget_absent(later)
    assert retention.requests(1, later) == retention.requests(0, later) > 3


# -- persistence -----------------------------------------------------------------------------------------------------


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
    retention, now = Retention[int](max_absent=5), NOW
    disk: dict[int, int] = {}
    database: dict[int, Row] = {}
    clock = retention.clock()[0]
    for event, key, size, gap in events:
        now += gap
        room = Decision[int]()
        if event == "ask":
            retention.record_request(key, now)
        elif event == "store":
            retention.record_stored(key, size, now)
            disk[key] = size
        elif event == "remove":
            retention.record_removed(key)
            disk.pop(key, None)
        elif event == "room":
            room = retention.evict(size, now, lambda other: other % 3 == 0)
        elif event == "admit":
            room = retention.admit(key + 100, size, now, 0, never)
        elif event == "clean":
            room = Decision(tuple(retention.evict_idle(now, never)))
            retention.forget_absent(now)
        else:
            for changed in retention.take_changed():
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
        assert retention.absent <= 5
        assert retention.clock()[0] >= clock
        clock = retention.clock()[0]


@given(st.lists(EVENTS, max_size=40), st.lists(st.sampled_from(range(10)), max_size=5))
def test_a_restored_state_decides_like_the_one_that_was_persisted(
    events: list[tuple[str, int, int, float]], after: list[int]
) -> None:
    old, now = Retention[int](), NOW
    for event, key, size, gap in events:
        now += gap
        old.record_request(key, now)
        if event == "store":
            old.record_stored(key, size, now)
        if event == "room":
            old.evict(size, now, never)
    new = Retention[int]()
    new.restore(old.clock(), rows(old))
    assert (new.clock(), rows(new), new.bytes) == (old.clock(), rows(old), old.bytes)
    assert new.take_changed() == set()
    for key in after:
        now += 3600
        for retention in (old, new):
            retention.record_request(key, now)
        assert new.row(key) == old.row(key)
    first, second = (retention.evict(10**9, now, never).victims for retention in (old, new))
    assert [victim.score for victim in first] == [victim.score for victim in second]
    assert set(first) == set(second)


def test_rows_that_could_not_be_written_are_told_again() -> None:
    retention = full(KIB, KIB)
    told = retention.take_changed()
    assert (told, retention.take_changed()) == ({0, 1}, set())
    retention.mark_changed(told)
    retention.record_request(2, NOW)
    assert retention.take_changed() == {0, 1, 2}


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_damaged_row_is_left_out_and_a_damaged_clock_replaced(broken: float) -> None:
    good = (KIB, 2.0, 50.0, 7.0, True)
    retention = Retention[int]()
    retention.restore(
        (broken, broken, NOW),
        {
            1: good,
            2: (KIB, broken, 50.0, 7.0, True),
            3: (KIB, 2.0, broken, 7.0, False),
            4: (-1, 2.0, 50.0, broken, True),
            5: (KIB, -1.0, 50.0, 7.0, True),
        },
    )
    assert rows(retention) == {1: good}
    assert retention.clock() == (7.0, 50.0, None)
    assert retention.bytes == KIB


def test_a_row_from_the_future_is_from_now() -> None:
    retention = Retention[int]()
    retention.restore((0.0, 10.0, NOW), {1: (0, 2.0, 1e9, 0.0, False), 2: (0, 2.0, 1e9, 0.0, True)})
    assert retention.requests(1, NOW) == retention.requests(2, NOW) == 2.0


def test_a_store_without_history_counts_what_it_has_as_asked_for_once() -> None:
    retention = Retention[int]()
    retention.restore(None, {})
    for key in range(3):
        retention.record_stored(key, KIB << key, NOW)
    assert [retention.requests(key, NOW) for key in range(3)] == [1.0, 1.0, 1.0]
    assert keys(retention.evict(1, NOW, never)) == [2]


def test_what_is_stored_long_after_it_was_asked_for_is_no_more_wanted_than_it_is_now() -> None:
    retention = full(KIB)
    asked(retention, 1, 4)
    now = days_pass(retention, 7)
    asked(retention, 0, 1, now)
    retention.record_stored(1, KIB, now)
    assert retention.score(1, now) == pytest.approx(2.0)
