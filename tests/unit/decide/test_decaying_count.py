"""Counts of requests decay with time."""

from hubcache.decide.decaying_count import DecayingCount
from hypothesis import given
from hypothesis import strategies as st

times = st.floats(0, 4e9)
counts = st.floats(0, 1e9)
half_lives = st.floats(1, 1e8)


def test_count_is_halved_after_the_half_life() -> None:
    assert DecayingCount(8.0, 100.0).at(110.0, 10.0) == 4.0


def test_request_adds_one() -> None:
    assert DecayingCount(8.0, 100.0).plus(110.0, 10.0) == DecayingCount(5.0, 110.0)


@given(counts, times, times, half_lives)
def test_count_never_grows_with_time_and_is_never_negative(
    count: float, last: float, now: float, half_life: float
) -> None:
    assert 0 <= DecayingCount(count, last).at(now, half_life) <= count


@given(counts, times, st.floats(0, 4e9), half_lives)
def test_clock_that_was_set_back_does_not_change_the_count(
    count: float, last: float, back: float, half_life: float
) -> None:
    assert DecayingCount(count, last).at(last - back, half_life) == count
    assert DecayingCount(count, last).plus(last - back, half_life).count == count + 1
