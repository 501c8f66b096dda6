"""The plan of a sweep: it deletes what the retention policy would evict with the same counts."""

import pytest
from hubcache.decide.bucket_plan import BucketPlan, RankClock, SummedCounts, short_digest
from hubcache.decide.decaying_count import DecayingCount
from hubcache.decide.eviction import Reason
from hubcache.decide.retention import Retention, weight
from hypothesis import given
from hypothesis import strategies as st
from support.retention import DAY, KIB, NOW, unprotected

HALF_LIFE, EXPIRE_AFTER = 7 * DAY, 30 * DAY

BLOBS = st.lists(
    st.tuples(st.integers(0, 5000 * KIB), st.floats(1.0, 100.0), st.floats(0.0, 29.0 * DAY)), min_size=1, max_size=40
)
"""Size, requests as of the last one, and the seconds since then."""


def planned(blobs: list[tuple[int, float, float]], clock: RankClock | None = None, most: float = 1e18) -> BucketPlan:
    """Return a plan with these blobs, whose keys are their numbers."""
    counts = SummedCounts(HALF_LIFE)
    plan = BucketPlan(NOW, counts, clock or RankClock(), EXPIRE_AFTER, most)
    for number, (size, requests, idle) in enumerate(blobs):
        counts.add(number, requests, NOW - idle)
        plan.add(str(number), number, size, NOW - 40 * DAY)
    return plan


@given(BLOBS, st.floats(0, 1), st.floats(0, 10), st.floats(0, 20 * DAY))
def test_blobs_are_deleted_as_the_retention_policy_evicts_them(
    blobs: list[tuple[int, float, float]], share: float, value: float, ago: float
) -> None:
    excess = int(share * sum(size for size, _, _ in blobs))
    clock = RankClock(((NOW - ago, value),))
    plan = planned(blobs, clock)
    policy = Retention[str](HALF_LIFE, EXPIRE_AFTER)
    ranks = [clock.at(NOW - idle) + requests / weight(size) for size, requests, idle in blobs]
    rows = {
        str(number): (size, requests, NOW - idle, ranks[number], True)
        for number, (size, requests, idle) in enumerate(blobs)
    }
    policy.restore((value, NOW, NOW), rows)
    expected = policy.evict(excess, NOW, unprotected).victims
    chosen = plan.choose(excess)
    assert [ranks[int(each.key)] for each in chosen] == [ranks[int(each.key)] for each in expected]
    assert sum(each.size for each in chosen) >= excess
    assert plan.clock.value == pytest.approx(policy.clock()[0])


@given(BLOBS, st.integers(0, 30000 * KIB), st.floats(0, 1))
def test_a_plan_that_keeps_few_blobs_deletes_the_same(
    blobs: list[tuple[int, float, float]], most: int, share: float
) -> None:
    excess = int(share * min(most, sum(size for size, _, _ in blobs)))
    assert planned(blobs, most=most).choose(excess) == planned(blobs).choose(excess)
    assert planned(blobs, most=0).choose(1) == []


def test_fewer_bytes_are_deleted_when_all_that_was_kept_does_not_suffice() -> None:
    plan = planned([(10, 1.0, 0.0), (20, 2.0, 0.0)])
    assert [each.key for each in plan.choose(1000)] == ["0", "1"]


def test_idle_blobs_are_deleted_and_not_counted_among_the_lowest() -> None:
    plan = planned([(10, 5.0, 31 * DAY), (20, 1.0, 1 * DAY)])
    assert [(each.key, each.size, each.reason) for each in plan.idle] == [("0", 10, Reason.IDLE)]
    assert [(each.key, each.reason) for each in plan.choose(1)] == [("1", Reason.SPACE)]


def test_blob_without_counts_was_requested_once_when_it_was_uploaded() -> None:
    plan = BucketPlan(NOW, SummedCounts(HALF_LIFE), RankClock(), EXPIRE_AFTER)
    plan.add("new", 1, 4 * KIB, NOW - DAY)
    plan.add("idle", 2, 4 * KIB, NOW - 31 * DAY)
    assert [each.key for each in plan.idle] == ["idle"]
    (chosen,) = plan.choose(1)
    assert (chosen.score, chosen.idle) == (1.0 / 2, DAY)
    assert chosen.requests == pytest.approx(2 ** (-1 / 7))


def test_upload_counts_as_a_request_when_no_later_one_is_known() -> None:
    counts = SummedCounts(HALF_LIFE)
    counts.add(1, 8.0, NOW - 14 * DAY)
    counts.add(2, 0.1, NOW - 14 * DAY)
    plan = BucketPlan(NOW, counts, RankClock(), EXPIRE_AFTER)
    plan.add("frequent", 1, KIB, NOW)
    plan.add("rare", 2, KIB, NOW)
    assert [(each.key, each.score) for each in plan.choose(2 * KIB)] == [("rare", 1.0), ("frequent", 2.0)]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-20 * DAY, 0)), min_size=1, max_size=8))
def test_counts_of_nodes_add_up_in_any_order(rows: list[tuple[float, float]]) -> None:
    forward, backward = SummedCounts(HALF_LIFE), SummedCounts(HALF_LIFE)
    for count, last in rows:
        forward.add(7, count, NOW + last)
    for count, last in reversed(rows):
        backward.add(7, count, NOW + last)
    expected = sum(DecayingCount(count, NOW + last).at(NOW, HALF_LIFE) for count, last in rows)
    for sums in (forward, backward):
        summed = sums.get(7)
        assert summed is not None
        assert summed.at(NOW, HALF_LIFE) == pytest.approx(expected)
        assert summed.last == max(NOW + last for _, last in rows)
    assert len(forward) == 1
    assert forward.get(8) is None


def test_clock_keeps_its_history_as_long_as_it_is_needed() -> None:
    clock = RankClock()
    assert (clock.value, clock.at(NOW)) == (0.0, 0.0)
    for hour in range(24 * 40):
        clock = clock.risen(hour + 1.0, NOW + 3600.0 * hour, EXPIRE_AFTER)
    now = NOW + 3600.0 * (24 * 40 - 1)
    assert clock.value == clock.at(now) == 960.0
    assert clock.at(now - 10 * DAY) == pytest.approx(960.0 - 240.0, abs=3)
    assert clock.at(now - 10 * DAY) <= 960.0 - 240.0, "a request is not ranked by a later value of the clock"
    assert len(clock.steps) < 2 * 30 * 8
    assert clock.at(0.0) == clock.steps[0][1]
    assert clock.steps[0][0] <= now - 30 * DAY


def test_clock_neither_falls_nor_goes_back_in_time() -> None:
    clock = RankClock().risen(5.0, NOW, EXPIRE_AFTER)
    assert clock.risen(4.0, NOW + DAY, EXPIRE_AFTER) is clock
    earlier = clock.risen(6.0, NOW - DAY, EXPIRE_AFTER)
    assert earlier.value == earlier.at(NOW) == 6.0
    times = [time for time, _ in earlier.steps]
    assert times == sorted(set(times))


def test_short_digest_has_64_bits() -> None:
    assert short_digest("ff" * 32) == (1 << 64) - 1
    assert short_digest("00" * 7 + "01" + "ff" * 24) == 1
