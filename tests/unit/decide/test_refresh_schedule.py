"""The schedule returns due tags, the popular ones first, and starves none."""

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
    """Return the due tags in the order in which they would be validated."""
    while schedule.collect_due(now, LIFETIME, 10):
        pass
    found = [schedule.pop(host) for _ in range(schedule.due(host))]
    return [watched.tag for watched in found if watched is not None]


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 100), max_size=30), st.floats(0, 120))
def test_only_due_tags_are_returned(dues: dict[int, float], now: float) -> None:
    schedule = Schedule()
    for name, due in dues.items():
        schedule.put(tag(name), due)
    assert sorted(drained(schedule, now)) == sorted(str(name) for name, due in dues.items() if due <= now)


@given(st.lists(st.integers(1, 1_000_000), min_size=2, max_size=20, unique=True))
def test_popular_tags_are_returned_first(requests: list[int]) -> None:
    schedule = Schedule()
    for count in requests:
        schedule.put(tag(count, count), 5.0)
    assert drained(schedule, 5.0) == [str(count) for count in sorted(requests, reverse=True)]


def test_each_registry_has_its_own_queue() -> None:
    schedule = Schedule()
    schedule.put(tag("popular", 1000.0), 0.0)
    schedule.put(tag("other", 1.0, "ghcr.io"), 0.0)
    assert drained(schedule, 0.0, "ghcr.io") == ["other"]
    assert drained(schedule, 0.0) == ["popular"]


def test_due_tags_of_registries_that_are_gone_are_removed() -> None:
    schedule, gone, kept = Schedule(), tag("gone", host="ghcr.io"), tag("kept")
    for each in (gone, kept):
        schedule.put(each, 0.0)
    schedule.collect_due(0.0, LIFETIME, 10)
    schedule.retain([HOST])
    assert (schedule.has(gone), schedule.has(kept), len(schedule)) == (False, True, 1)
    schedule.put(gone, 0.0)
    assert drained(schedule, 0.0, "ghcr.io") == ["gone"]


def test_tag_is_due_at_the_time_it_was_last_scheduled_for() -> None:
    schedule, one, two = Schedule(), tag(1), tag(2)
    for due in (50.0, 10.0, 30.0):
        schedule.put(one, due)
    schedule.put(two, 20.0)
    assert drained(schedule, 20.0) == ["2"]
    assert drained(schedule, 30.0) == ["1"]
    assert drained(schedule, 99.0) == []
    assert len(schedule) == 0


def test_tag_that_is_rescheduled_while_due_is_returned_once() -> None:
    schedule, one = Schedule(), tag(1)
    schedule.put(one, 0.0)
    schedule.collect_due(0.0, LIFETIME, 10)
    schedule.put(one, 5.0)
    assert drained(schedule, 0.0) == []
    assert drained(schedule, 5.0) == ["1"]


def test_dropped_tag_is_not_scheduled() -> None:
    schedule, one, two = Schedule(), tag(1), tag(2)
    for watched in (one, two):
        schedule.put(watched, 0.0)
    schedule.drop(one)
    assert (schedule.has(one), schedule.has(two)) == (False, True)
    assert drained(schedule, 0.0) == ["2"]
    assert not schedule.has(two)


def test_cleared_schedule_can_be_used_again() -> None:
    schedule, one = Schedule(), tag(1)
    schedule.put(one, 0.0)
    schedule.clear()
    assert not schedule.has(one)
    schedule.put(one, 1.0)
    assert drained(schedule, 1.0) == ["1"]


def test_many_due_tags_are_collected_in_several_calls() -> None:
    schedule = Schedule()
    for name in range(25):
        schedule.put(tag(name), 0.0)
    assert [schedule.collect_due(0.0, LIFETIME, 10) for _ in range(3)] == [True, True, False]


@given(
    st.lists(st.floats(0.1, 1e4), min_size=1, max_size=12),
    st.floats(0.1, 5),
    st.integers(10, 40),
)
def test_unpopular_due_tag_is_returned_eventually(requests: list[float], rate: float, crowd: int) -> None:
    """Popular tags that become due again and again use up the budget, and yet each other tag is returned."""
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


def test_tag_that_waited_long_goes_before_a_popular_one_that_became_due_later() -> None:
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
