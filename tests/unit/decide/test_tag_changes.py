"""The changes of a tag, and the times of its validations that follow from them."""

import pytest
from hubcache.decide.tag_changes import LONGEST_WAIT, MAX_CHANGES, DailyPattern, TagChanges
from hypothesis import given
from hypothesis import strategies as st

DAY, HOUR = 86400.0, 3600.0
MIDNIGHT = 20_000 * DAY
LIFETIME = 60.0


def nightly(days: int, hour: float = 3.0) -> TagChanges:
    """Return changes at this hour of `days` days, found within a minute."""
    changes = TagChanges(MIDNIGHT)
    for day in range(days):
        at = MIDNIGHT + day * DAY + hour * HOUR
        changes = changes.with_change(at - 60, at)
    return changes


def validations(changes: TagChanges, begin: float, end: float) -> list[float]:
    """Return when the tag is validated if it does not change."""
    found, at = [], begin
    while (at := changes.next_validation(at, at, LIFETIME)) < end:
        found.append(at)
    return found


def test_tag_that_never_changed_is_validated_after_a_tenth_of_its_age() -> None:
    changes = TagChanges(MIDNIGHT)
    waits = [changes.wait(MIDNIGHT + age) for age in (0, HOUR, 10 * HOUR, 30 * DAY, 365 * DAY)]
    assert waits == [0, 360, HOUR, LONGEST_WAIT, LONGEST_WAIT]


def test_tag_that_changes_often_is_validated_often() -> None:
    changes = TagChanges(MIDNIGHT)
    for number in range(1, 20):
        changes = changes.with_change(MIDNIGHT + number * 1200 - 60, MIDNIGHT + number * 1200)
    assert len(changes.times) == MAX_CHANGES
    assert 60 < changes.wait(changes.times[-1]) < 180


def test_tag_that_stopped_changing_is_validated_less_and_less_often() -> None:
    changes = nightly(5)
    last = changes.times[-1]
    waits = [changes.wait(last + days * DAY) for days in (0, 3, 30)]
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] == LONGEST_WAIT


@pytest.mark.parametrize("hour", [0.0, 3.0, 12.5, 23.9])
def test_tag_that_changes_nightly_is_validated_often_around_that_hour(hour: float) -> None:
    changes = nightly(6, hour)
    expected = MIDNIGHT + 6 * DAY + hour * HOUR
    times = validations(changes, expected - 12 * HOUR, expected + 600)
    near = [time for time in times if abs(time - expected) <= 600]
    assert len(near) >= 6, "every few minutes, so that the change is found soon"
    assert len(times) - len(near) <= 12, "rarely at other times of the day"


def test_tag_that_has_changed_tonight_is_validated_at_the_ordinary_interval() -> None:
    changes = nightly(6)
    last = changes.times[-1]
    assert len(validations(changes, last, last + 2 * HOUR)) <= 1


def test_changes_at_different_hours_are_not_a_pattern() -> None:
    changes = TagChanges(MIDNIGHT)
    for number in range(6):
        at = MIDNIGHT + number * (DAY + 5 * HOUR)
        changes = changes.with_change(at - 60, at)
    assert changes.daily_pattern() is None
    assert TagChanges(MIDNIGHT, tuple(MIDNIGHT + 600.0 * n for n in range(8))).daily_pattern() is None, (
        "all within two hours"
    )


def test_two_nightly_changes_are_not_a_pattern() -> None:
    assert nightly(2).daily_pattern() is None
    assert nightly(3).daily_pattern() is not None


@given(st.floats(0, DAY), st.lists(st.floats(-HOUR, HOUR), min_size=3, max_size=8))
def test_pattern_is_found_at_every_hour(second: float, jitter: list[float]) -> None:
    """This includes midnight, where the second of the day wraps around."""
    times = tuple(MIDNIGHT + day * DAY + second + late for day, late in enumerate(jitter))
    pattern = TagChanges(MIDNIGHT, times).daily_pattern()
    assert pattern is not None
    assert min(abs(pattern.second - second - days * DAY) for days in (-1, 0, 1)) <= HOUR + 1


@given(st.floats(0, DAY), st.floats(600, 7200), st.floats(0, 10 * DAY))
def test_window_starts_before_it_ends(second: float, spread: float, after: float) -> None:
    begin = DailyPattern(second, spread).window_start(MIDNIGHT + after)
    assert begin + 2 * spread > MIDNIGHT + after - 1
    assert begin <= MIDNIGHT + after + DAY


CHANGES = st.builds(
    TagChanges,
    st.floats(MIDNIGHT - 300 * DAY, MIDNIGHT),
    st.lists(st.floats(MIDNIGHT, MIDNIGHT + 9 * DAY), max_size=8).map(lambda times: tuple(sorted(times))),
)


@given(CHANGES, st.floats(0, 20 * DAY), st.floats(0, DAY))
def test_next_validation_is_within_limits(changes: TagChanges, later: float, ago: float) -> None:
    now = MIDNIGHT + 9 * DAY + later
    due = changes.next_validation(now - ago, now, LIFETIME)
    assert now - ago + LIFETIME - 1e-3 <= due <= now - ago + LONGEST_WAIT + 1e-3
    assert 0.0 <= changes.change_probability(now - ago, now) <= 1.0


@given(CHANGES, st.floats(MIDNIGHT, MIDNIGHT + 20 * DAY), st.floats(0, DAY))
def test_new_change_is_the_last_one(changes: TagChanges, found: float, ago: float) -> None:
    more = changes.with_change(found - ago, found)
    assert len(more.times) == min(MAX_CHANGES, len(changes.times) + 1)
    assert found - ago <= more.times[-1] or more.times[-1] <= found


@given(CHANGES)
def test_changes_round_trip(changes: TagChanges) -> None:
    assert TagChanges.decode(changes.encode()) == changes


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '["x"]', "[1, null]"])
def test_malformed_row_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        TagChanges.decode(text)


def test_merged_changes_contain_each_change_once() -> None:
    stored = nightly(3)
    last = stored.times[-1]
    assert stored.merged(None) == stored
    assert stored.merged(TagChanges(last, (last + 30, last + DAY))).times == (*stored.times, last + DAY)
