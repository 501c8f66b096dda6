"""One log line of a kind in so many seconds."""

from types import SimpleNamespace

from hubcache.decide.throttle import MAX_KINDS, Throttle


def test_the_first_line_of_each_kind_is_logged_and_the_next_after_the_time() -> None:
    now = SimpleNamespace(value=0.0)
    throttle = Throttle(60.0, lambda: now.value)
    assert [throttle.permits(kind) for kind in ("a", "a", "b")] == [True, False, True]
    now.value = 59.0
    assert not throttle.permits("a")
    now.value = 60.0
    assert [throttle.permits(kind) for kind in ("a", "a")] == [True, False]


def test_kinds_that_clients_make_up_do_not_fill_the_memory() -> None:
    throttle = Throttle(60.0, lambda: 0.0)
    assert all(throttle.permits(number) for number in range(3 * MAX_KINDS))
    assert len(throttle._logged) == MAX_KINDS
