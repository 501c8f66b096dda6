"""A budget is not exceeded in any window of time, and can be spent completely."""

import math

import pytest
from hubcache.decide.budget import BURST_SECONDS, Budget
from hypothesis import given
from hypothesis import strategies as st

RATES = st.floats(0.001, 100)
STEPS = st.lists(st.floats(0, 100), min_size=1, max_size=60)


def upper_bound(rate: float, seconds: float) -> float:
    """Return what may be spent within any window of `seconds`, with a tolerance for rounding."""
    return max(1.0, rate * BURST_SECONDS) + rate * seconds + 1e-6


@given(RATES, STEPS, st.integers(1, 30))
def test_budget_is_not_exceeded_in_any_window(rate: float, steps: list[float], attempts: int) -> None:
    now, budget, times = 1.7e9, Budget(rate, 1.7e9), list[float]()
    for step in steps:
        now += step
        times += [now for _ in range(attempts) if budget.spend(now)]
    for first, begin in enumerate(times):
        for count, end in enumerate(times[first:], 1):
            assert count <= upper_bound(rate, end - begin)


@given(RATES, STEPS)
def test_reserved_requests_do_not_exceed_the_budget(rate: float, steps: list[float]) -> None:
    now, budget, times = 1.7e9, Budget(rate, 1.7e9), list[float]()
    for step in steps:
        now += step
        times.append(now + budget.reserve(now))
        times += [now for _ in range(3) if budget.spend(now)]
    times.sort()
    for first, begin in enumerate(times):
        for count, end in enumerate(times[first:], 1):
            assert count <= upper_bound(rate, end - begin) + rate * 1e-4


@given(RATES)
def test_budget_can_be_spent_completely(rate: float) -> None:
    now, budget, spent = 0.0, Budget(rate, 0.0), 0
    for _ in range(100):
        now += budget.wait(now) * (1 + 1e-9)
        spent += budget.spend(now)
    assert spent == 100
    assert now <= 100 / rate * 1.001


def test_rate_of_zero_permits_no_request() -> None:
    budget = Budget(0.0, 0.0)
    assert not budget.spend(1e9)
    assert budget.wait(1e9) == budget.reserve(1e9) == math.inf


def test_changed_rate_applies_from_the_time_of_the_change() -> None:
    budget = Budget(1.0, 0.0)
    budget.change(0.0, 0.0)
    assert not budget.spend(100.0)
    budget.change(2.0, 100.0)
    assert budget.wait(100.0) == 0.5
    assert budget.spend(100.5)


@pytest.mark.parametrize("back", [1.0, 1e6])
def test_clock_that_was_set_back_does_not_stop_requests(back: float) -> None:
    budget = Budget(1.0, 1e7)
    while budget.spend(1e7):
        pass
    assert not budget.spend(1e7 - back)
    assert budget.spend(1e7 - back + 1.0)
