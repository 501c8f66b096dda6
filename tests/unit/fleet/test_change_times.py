"""Times of changes: bounded, and a dropped one still counts."""

import pytest
from hubcache.fleet import change_times
from hubcache.fleet.change_times import ChangeTimes


def test_time_counts_for_its_key_only() -> None:
    times = ChangeTimes()
    times.record(5.0, "host", "app", "1")
    assert times.last("host", "app", "1") == 5.0
    assert times.last("host", "app") == times.last("host", "app", "2") == 0.0


def test_earlier_time_does_not_replace_a_later_one() -> None:
    times = ChangeTimes()
    times.record(5.0, "host")
    times.record(3.0, "host")
    assert times.last("host") == 5.0


def test_dropped_time_is_forgotten_if_clients_can_invent_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_times, "MAX_TIMES", 10)
    times = ChangeTimes(forgets=True)
    for number in range(100):
        times.record(float(number), f"r{number}")
        assert len(times._times) <= 10
    assert times.last("r99") == 99.0
    assert times.last("r0") == times.last("other") == 0.0


def test_dropped_time_counts_for_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_times, "MAX_TIMES", 10)
    times = ChangeTimes()
    for number in range(100):
        times.record(float(number), f"r{number}")
        assert len(times._times) <= 10
    assert times.last("r99") == 99.0
    assert times.last("r0") == times.last("other") == 89.0
