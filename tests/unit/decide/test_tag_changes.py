"""When a tag moved, and what that tells of when it moves again."""

import pytest
from hubcache.decide.tag_changes import LONGEST_WAIT, MAX_CHANGES, DailyPattern, TagChanges
from hypothesis import given
from hypothesis import strategies as st

DAY, HOUR = 86400.0, 3600.0
MIDNIGHT = 20_000 * DAY
LIFETIME = 60.0


def nightly(days: int, hour: float = 3.0) -> TagChanges:
    """Moved at that hour of each of so many days, found within a minute."""
    moves = TagChanges(MIDNIGHT)
    for day in range(days):
        at = MIDNIGHT + day * DAY + hour * HOUR
        moves = moves.with_change(at - 60, at)
    return moves


def looks(moves: TagChanges, begin: float, end: float) -> list[float]:
    """When it is looked at, if it does not move."""
    found, at = [], begin
    while (at := moves.next_validation(at, at, LIFETIME)) < end:
        found.append(at)
    return found


def test_tag_that_has_not_moved_for_long_is_worth_a_look_now_and_then() -> None:
    moves = TagChanges(MIDNIGHT)
    waits = [moves.wait(MIDNIGHT + age) for age in (0, HOUR, 10 * HOUR, 30 * DAY, 365 * DAY)]
    assert waits == [0, 360, HOUR, LONGEST_WAIT, LONGEST_WAIT]


def test_tag_that_moves_often_is_worth_a_look_often() -> None:
    moves = TagChanges(MIDNIGHT)
    for number in range(1, 20):
        moves = moves.with_change(MIDNIGHT + number * 1200 - 60, MIDNIGHT + number * 1200)
    assert len(moves.times) == MAX_CHANGES
    assert 60 < moves.wait(moves.times[-1]) < 180


def test_tag_that_stopped_moving_is_looked_at_less_and_less() -> None:
    moves = nightly(5)
    last = moves.times[-1]
    waits = [moves.wait(last + days * DAY) for days in (0, 3, 30)]
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] == LONGEST_WAIT


@pytest.mark.parametrize("hour", [0.0, 3.0, 12.5, 23.9])
def test_tag_that_moves_nightly_is_looked_at_at_its_hour(hour: float) -> None:
    moves = nightly(6, hour)
    expected = MIDNIGHT + 6 * DAY + hour * HOUR
    times = looks(moves, expected - 12 * HOUR, expected + 600)
    near = [time for time in times if abs(time - expected) <= 600]
    assert len(near) >= 6, "each few minutes, so that the move is found soon"
    assert len(times) - len(near) <= 12, "and seldom at other times of the day"


def test_after_it_has_moved_nobody_waits_for_it_until_the_next_night() -> None:
    moves = nightly(6)
    last = moves.times[-1]
    assert len(looks(moves, last, last + 2 * HOUR)) <= 1


def test_moves_at_all_hours_are_no_habit() -> None:
    moves = TagChanges(MIDNIGHT)
    for number in range(6):
        at = MIDNIGHT + number * (DAY + 5 * HOUR)
        moves = moves.with_change(at - 60, at)
    assert moves.daily_pattern() is None
    assert TagChanges(MIDNIGHT, tuple(MIDNIGHT + 600.0 * n for n in range(8))).daily_pattern() is None, (
        "all of them within an hour"
    )


def test_two_nights_are_no_habit_yet() -> None:
    assert nightly(2).daily_pattern() is None
    assert nightly(3).daily_pattern() is not None


@given(st.floats(0, DAY), st.lists(st.floats(-HOUR, HOUR), min_size=3, max_size=8))
def test_habit_is_found_at_every_hour(second: float, jitter: list[float]) -> None:
    """Also around midnight, where the seconds of the day begin again."""
    times = tuple(MIDNIGHT + day * DAY + second + late for day, late in enumerate(jitter))
    habit = TagChanges(MIDNIGHT, times).daily_pattern()
    assert habit is not None
    assert min(abs(habit.second - second - days * DAY) for days in (-1, 0, 1)) <= HOUR + 1


@given(st.floats(0, DAY), st.floats(600, 7200), st.floats(0, 10 * DAY))
def test_time_of_expectation_begins_before_it_is_over(second: float, spread: float, after: float) -> None:
    begin = DailyPattern(second, spread).window_start(MIDNIGHT + after)
    assert begin + 2 * spread > MIDNIGHT + after - 1
    assert begin <= MIDNIGHT + after + DAY


MOVES = st.builds(
    TagChanges,
    st.floats(MIDNIGHT - 300 * DAY, MIDNIGHT),
    st.lists(st.floats(MIDNIGHT, MIDNIGHT + 9 * DAY), max_size=8).map(lambda times: tuple(sorted(times))),
)


@given(MOVES, st.floats(0, 20 * DAY), st.floats(0, DAY))
def test_next_look_is_neither_at_once_nor_never(moves: TagChanges, later: float, ago: float) -> None:
    now = MIDNIGHT + 9 * DAY + later
    due = moves.next_validation(now - ago, now, LIFETIME)
    assert now - ago + LIFETIME - 1e-3 <= due <= now - ago + LONGEST_WAIT + 1e-3
    assert 0.0 <= moves.change_probability(now - ago, now) <= 1.0


@given(MOVES, st.floats(MIDNIGHT, MIDNIGHT + 20 * DAY), st.floats(0, DAY))
def test_moves_stay_in_order(moves: TagChanges, found: float, ago: float) -> None:
    more = moves.with_change(found - ago, found)
    assert len(more.times) == min(MAX_CHANGES, len(moves.times) + 1)
    assert found - ago <= more.times[-1] or more.times[-1] <= found


@given(MOVES)
def test_what_is_written_can_be_read(moves: TagChanges) -> None:
    assert TagChanges.decode(moves.encode()) == moves


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '["x"]', "[1, null]"])
def test_what_is_no_such_row_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        TagChanges.decode(text)


def test_moves_of_an_earlier_run_count_and_none_counts_twice() -> None:
    stored = nightly(3)
    last = stored.times[-1]
    assert stored.merged(None) == stored
    assert stored.merged(TagChanges(last, (last + 30, last + DAY))).times == (*stored.times, last + DAY)
