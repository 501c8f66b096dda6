"""Which tag is looked at next: what is due, the popular first, and nobody never."""

from hubcache.decide.budget import Budget
from hubcache.decide.refresh_schedule import PATIENCE, Schedule
from hubcache.decide.watched_tag import WatchedTag
from hypothesis import given
from hypothesis import strategies as st

HOST = "registry-1.docker.io"
LIFETIME = 60.0


def tag(name: object, requests: float = 1.0, host: str = HOST) -> WatchedTag:
    return WatchedTag(host, "library/app", str(name), "any", 0.0, 0.0, requests)


def drained(schedule: Schedule, now: float, host: str = HOST) -> list[str]:
    """Tags in the order in which they would be looked at now."""
    while schedule.collect_due(now, LIFETIME, 10):
        pass
    found = [schedule.pop(host) for _ in range(schedule.due(host))]
    return [watched.tag for watched in found if watched is not None]


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 100), max_size=30), st.floats(0, 120))
def test_what_is_due_is_looked_at_and_nothing_else(dues: dict[int, float], now: float) -> None:
    schedule = Schedule()
    for name, due in dues.items():
        schedule.put(tag(name), due)
    assert sorted(drained(schedule, now)) == sorted(str(name) for name, due in dues.items() if due <= now)


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=20, unique=True))
def test_popular_comes_before_what_is_not(requests: list[float]) -> None:
    schedule = Schedule()
    for count in requests:
        schedule.put(tag(count, count), 5.0)
    assert drained(schedule, 5.0) == [str(count) for count in sorted(requests, reverse=True)]


def test_registries_do_not_wait_for_each_other() -> None:
    schedule = Schedule()
    schedule.put(tag("popular", 1000.0), 0.0)
    schedule.put(tag("other", 1.0, "ghcr.io"), 0.0)
    assert drained(schedule, 0.0, "ghcr.io") == ["other"]
    assert drained(schedule, 0.0) == ["popular"]


def test_tag_has_the_place_that_it_got_last() -> None:
    schedule, one, two = Schedule(), tag(1), tag(2)
    for due in (50.0, 10.0, 30.0):
        schedule.put(one, due)
    schedule.put(two, 20.0)
    assert drained(schedule, 20.0) == ["2"]
    assert drained(schedule, 30.0) == ["1"]
    assert drained(schedule, 99.0) == []
    assert len(schedule) == 0


def test_tag_that_gets_a_place_while_it_is_due_is_looked_at_once() -> None:
    schedule, one = Schedule(), tag(1)
    schedule.put(one, 0.0)
    schedule.collect_due(0.0, LIFETIME, 10)
    schedule.put(one, 5.0)
    assert drained(schedule, 0.0) == []
    assert drained(schedule, 5.0) == ["1"]


def test_tag_that_was_dropped_has_no_place() -> None:
    schedule, one, two = Schedule(), tag(1), tag(2)
    for watched in (one, two):
        schedule.put(watched, 0.0)
    schedule.drop(one)
    assert (schedule.has(one), schedule.has(two)) == (False, True)
    assert drained(schedule, 0.0) == ["2"]
    assert not schedule.has(two)


def test_schedule_that_was_cleared_begins_anew() -> None:
    schedule, one = Schedule(), tag(1)
    schedule.put(one, 0.0)
    schedule.clear()
    assert not schedule.has(one)
    schedule.put(one, 1.0)
    assert drained(schedule, 1.0) == ["1"]


def test_much_that_is_due_is_sorted_bit_by_bit() -> None:
    schedule = Schedule()
    for name in range(25):
        schedule.put(tag(name), 0.0)
    assert [schedule.collect_due(0.0, LIFETIME, 10) for _ in range(3)] == [True, True, False]


@given(
    st.lists(st.floats(0.1, 1e4), min_size=1, max_size=12),
    st.floats(0.1, 5),
    st.integers(10, 40),
)
def test_everything_due_is_looked_at_in_the_end_however_much_more_popular_the_rest_is(
    requests: list[float], rate: float, crowd: int
) -> None:
    """Popular tags that are due again and again take more than there is; each of the others has its turn."""
    schedule, budget, now, seen = Schedule(), Budget(rate, 0.0), 0.0, set[str]()
    for name, count in enumerate(requests):
        schedule.put(tag(name, count), 0.0)
    for name in range(crowd):
        schedule.put(tag(f"popular {name}", 1e5), 0.0)
    longest = PATIENCE * 30 + (crowd + len(requests)) / rate + 60
    while now < longest:
        now += 1.0
        while schedule.collect_due(now, LIFETIME, 100):
            pass
        while schedule.due(HOST) and budget.spend(now):
            watched = schedule.pop(HOST)
            assert watched is not None
            seen.add(watched.tag)
            if watched.tag.startswith("popular"):
                watched.requests, watched.requested_at = 1e5, now
                schedule.put(watched, now + 1.0)
    assert seen >= {str(name) for name in range(len(requests))}


def test_popular_of_today_waits_for_what_has_waited_long() -> None:
    schedule = Schedule()
    schedule.put(tag("patient", 4.0), 0.0)
    schedule.put(tag("twice as popular, later", 8.0), PATIENCE * 1.5)
    schedule.put(tag("a hundred times as popular, later", 800.0), PATIENCE * 1.5)
    schedule.collect_due(0.0, LIFETIME, 10)
    for watched in list(schedule._entries.values()):
        watched.requested_at = PATIENCE * 1.5
    assert drained(schedule, PATIENCE * 1.5) == [
        "a hundred times as popular, later",
        "patient",
        "twice as popular, later",
    ]
