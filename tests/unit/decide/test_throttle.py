"""One log line of each kind is permitted within a number of seconds."""

from types import SimpleNamespace

from hubcache.decide.throttle import MAX_KINDS, Throttle


def test_one_line_of_each_kind_is_permitted_within_the_time() -> None:
    now = SimpleNamespace(value=0.0)
    throttle = Throttle(60.0, lambda: now.value)
    assert [throttle.permits(kind) for kind in ("a", "a", "b")] == [True, False, True]
    now.value = 59.0
    assert not throttle.permits("a")
    now.value = 60.0
    assert [throttle.permits(kind) for kind in ("a", "a")] == [True, False]


def test_number_of_remembered_kinds_is_bounded() -> None:
    throttle = Throttle(60.0, lambda: 0.0)
    assert all(throttle.permits(number) for number in range(3 * MAX_KINDS))
    assert len(throttle._logged) == MAX_KINDS
