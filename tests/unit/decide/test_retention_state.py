"""The state of the retention policy is bounded, survives jumps of the clock, and is the same after a restart."""

import math

import pytest
from hubcache.decide.eviction import Decision
from hubcache.decide.retention import MAX_STEP, Retention
from hubcache.decide.retention_rows import Row
from hypothesis import given
from hypothesis import strategies as st
from support.retention import DAY, KEYS, KIB, NOW, SIZES, days_pass, filled, keys, requested, rows, unprotected

# -- absent keys


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=60), st.integers(0, 5))
def test_number_of_absent_keys_is_bounded(events: list[tuple[int, bool]], rows: int) -> None:
    retention = Retention[int](max_absent=rows)
    for key, stored in events:
        retention.record_request(key, NOW)
        if stored:
            retention.record_stored(key, 1, NOW)
        else:
            retention.record_removed(key)
        assert retention.absent <= rows


def test_least_recently_requested_absent_key_is_forgotten_first() -> None:
    retention = Retention[int](max_absent=2)
    for key in (1, 2, 1, 3):
        retention.record_request(key, NOW)
    assert [key for key in range(5) if retention.row(key)] == [1, 3]


def test_lowered_bound_of_absent_keys_applies_at_the_next_cleaning() -> None:
    retention = Retention[int]()
    for key in range(10):
        retention.record_request(key, NOW)
    retention.max_absent = 3
    retention.forget_absent(NOW)
    assert retention.absent == 3


def test_absent_key_is_forgotten_after_a_month_without_requests() -> None:
    retention = filled(KIB)
    requested(retention, 1, 9)
    now = days_pass(retention, 29)
    assert retention.requests(1, now) > 0
    now = days_pass(retention, 1, now)
    assert (retention.row(1), 0 in retention) == (None, True)


# -- jumps of the clock


@given(st.floats(0, 1e12), st.booleans())
def test_clock_that_was_set_back_changes_neither_counts_nor_scores(back: float, is_stored: bool) -> None:
    retention = filled(KIB) if is_stored else Retention[int]()
    requested(retention, 0, 5)
    before, score = retention.requests(0, NOW), retention.score(0, NOW)
    assert retention.requests(0, NOW - back) == before
    retention.forget_absent(NOW - back)
    assert (retention.requests(0, NOW - back), retention.score(0, NOW - back)) == (before, score)
    assert retention.requests(0, NOW - back + DAY) == pytest.approx(before * 2 ** (-DAY / retention.half_life))


@given(st.floats(DAY, 1e12))
def test_clock_that_jumps_ahead_counts_as_a_day(jump: float) -> None:
    retention = filled(KIB, KIB, requests=4)
    requested(retention, 2, 4)
    later = NOW + jump
    assert retention.evict_idle(later, unprotected) == []
    retention.forget_absent(later)
    for key in range(3):
        assert retention.requests(key, later) == pytest.approx(4 * 2 ** (-MAX_STEP / retention.half_life))
    retention.forget_absent(NOW)
    assert retention.requests(0, NOW + DAY) == pytest.approx(4 * 2 ** (-2 * MAX_STEP / retention.half_life))


def test_nothing_expires_during_a_year_in_which_the_machine_is_off() -> None:
    old = filled(KIB, requests=4)
    requested(old, 1, 4)
    retention = Retention[int]()
    retention.restore(old.clock(), rows(old))
    later = NOW + 365 * DAY
    assert retention.evict_idle(later, unprotected) == []
    retention.forget_absent(later)
    assert retention.requests(1, later) == retention.requests(0, later) > 3


# -- persistence


EVENTS = st.tuples(
    st.sampled_from(["request", "store", "remove", "evict", "clean", "admit", "write"]),
    KEYS,
    SIZES,
    st.floats(-DAY, 9 * DAY),
)


@given(st.lists(EVENTS, max_size=60))
def test_bytes_and_written_rows_match_the_state_after_any_events(
    events: list[tuple[str, int, int, float]],
) -> None:
    retention, now = Retention[int](max_absent=5), NOW
    disk: dict[int, int] = {}
    database: dict[int, Row] = {}
    clock = retention.clock()[0]
    for event, key, size, gap in events:
        now += gap
        decision = Decision[int]()
        if event == "request":
            retention.record_request(key, now)
        elif event == "store":
            retention.record_stored(key, size, now)
            disk[key] = size
        elif event == "remove":
            retention.record_removed(key)
            disk.pop(key, None)
        elif event == "evict":
            decision = retention.evict(size, now, lambda other: other % 3 == 0)
        elif event == "admit":
            decision = retention.admit(key + 100, size, now, 0, unprotected)
        elif event == "clean":
            decision = Decision(tuple(retention.evict_idle(now, unprotected)))
            retention.forget_absent(now)
        else:
            for changed in retention.take_changed():
                row = retention.row(changed)
                if row is None:
                    database.pop(changed, None)
                else:
                    database[changed] = row
            assert database == rows(retention)
        for victim in decision.victims:
            assert disk.pop(victim.key) == victim.size
        assert retention.bytes == sum(disk.values())
        assert {other for other in range(10) if other in retention} == set(disk)
        assert len(retention) == len(disk)
        assert retention.absent <= 5
        assert retention.clock()[0] >= clock
        clock = retention.clock()[0]


@given(st.lists(EVENTS, max_size=40), st.lists(st.sampled_from(range(10)), max_size=5))
def test_restored_state_decides_like_the_persisted_one(
    events: list[tuple[str, int, int, float]], after: list[int]
) -> None:
    old, now = Retention[int](), NOW
    for event, key, size, gap in events:
        now += gap
        old.record_request(key, now)
        if event == "store":
            old.record_stored(key, size, now)
        if event == "evict":
            old.evict(size, now, unprotected)
    new = Retention[int]()
    new.restore(old.clock(), rows(old))
    assert (new.clock(), rows(new), new.bytes) == (old.clock(), rows(old), old.bytes)
    assert new.take_changed() == set()
    for key in after:
        now += 3600
        for retention in (old, new):
            retention.record_request(key, now)
        assert new.row(key) == old.row(key)
    first, second = (retention.evict(10**9, now, unprotected).victims for retention in (old, new))
    assert [victim.score for victim in first] == [victim.score for victim in second]
    assert set(first) == set(second)


def test_rows_that_could_not_be_written_are_returned_again() -> None:
    retention = filled(KIB, KIB)
    changed_keys = retention.take_changed()
    assert (changed_keys, retention.take_changed()) == ({0, 1}, set())
    retention.mark_changed(changed_keys)
    retention.record_request(2, NOW)
    assert retention.take_changed() == {0, 1, 2}


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_damaged_row_is_ignored_and_a_damaged_clock_replaced(broken: float) -> None:
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


def test_row_from_the_future_counts_as_of_now() -> None:
    retention = Retention[int]()
    retention.restore((0.0, 10.0, NOW), {1: (0, 2.0, 1e9, 0.0, False), 2: (0, 2.0, 1e9, 0.0, True)})
    assert retention.requests(1, NOW) == retention.requests(2, NOW) == 2.0


def test_stored_content_without_rows_counts_as_requested_once() -> None:
    retention = Retention[int]()
    retention.restore(None, {})
    for key in range(3):
        retention.record_stored(key, KIB << key, NOW)
    assert [retention.requests(key, NOW) for key in range(3)] == [1.0, 1.0, 1.0]
    assert keys(retention.evict(1, NOW, unprotected)) == [2]


def test_content_is_ranked_by_its_decayed_count_when_it_is_stored() -> None:
    retention = filled(KIB)
    requested(retention, 1, 4)
    now = days_pass(retention, 7)
    requested(retention, 0, 1, now)
    retention.record_stored(1, KIB, now)
    assert retention.score(1, now) == pytest.approx(2.0)
