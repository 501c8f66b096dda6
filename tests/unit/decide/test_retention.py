"""The retention policy keeps what is requested often; content that is requested once evicts nothing."""

import itertools
import math

import pytest
from hubcache.decide.eviction import Decision, Eviction, Reason, Refusal
from hubcache.decide.retention import Retention
from hypothesis import given
from hypothesis import strategies as st
from support.retention import DAY, KEYS, KIB, NOW, SIZES, days_pass, filled, keys, requested, unprotected

GAPS = st.lists(st.floats(0, DAY), min_size=1, max_size=20)


# -- counting


@given(GAPS)
def test_count_is_the_decayed_sum_of_all_requests(gaps: list[float]) -> None:
    times = list(itertools.accumulate(gaps, initial=NOW))
    for resident in (False, True):
        retention = filled(KIB) if resident else Retention[int]()
        for time in times:
            retention.record_request(0, time)
        each = [2.0 ** ((time - times[-1]) / retention.half_life) for time in times]
        first = each[0] if resident else 0.0
        assert retention.requests(0, times[-1]) == pytest.approx(sum(each) + first)


def test_content_without_requests_has_no_count_and_no_score() -> None:
    retention = Retention[int]()
    assert (retention.requests(1, NOW), retention.score(1, NOW), retention.row(1)) == (0.0, 0.0, None)


def test_idle_time_is_known_for_stored_and_absent_content() -> None:
    retention: Retention[str] = Retention()
    retention.record_request("absent", NOW)
    retention.record_request("stored", NOW)
    retention.record_stored("stored", KIB, NOW + 50)
    assert retention.idle("unknown", NOW) is None
    assert retention.idle("absent", NOW + 100) == 100
    assert retention.idle("stored", NOW + 100) == 100


def test_queries_do_not_change_the_state() -> None:
    retention = filled(KIB)
    before = retention.clock(), retention.row(0)
    retention.requests(0, NOW + DAY), retention.score(0, NOW + DAY), retention.is_admitted(0, NOW + DAY)
    assert (retention.clock(), retention.row(0)) == before


def test_requests_before_a_long_pause_do_not_count() -> None:
    retention = Retention[int](half_life=1000 * DAY)
    now = requested(retention, 1, 5) and NOW
    for _ in range(30):
        now += DAY
        requested(retention, 2, 1, now)
    retention.record_request(1, now)
    assert retention.requests(1, now) == 1.0


def test_half_life_can_be_changed_at_any_time() -> None:
    retention = filled(KIB, requests=4)
    retention.half_life = DAY
    assert retention.requests(0, NOW + DAY) == pytest.approx(2.0)


# -- admission


@given(SIZES, st.integers(0, 50))
def test_content_that_fits_is_always_admitted(size: int, spare: int) -> None:
    assert Retention[int]().admit(1, size, NOW, size + spare, unprotected) == Decision()


@given(st.integers(1, 6), st.lists(st.floats(0, DAY), min_size=5, max_size=5))
def test_content_with_one_request_too_few_is_refused(needed: int, gaps: list[float]) -> None:
    retention, now = filled(100 * KIB), NOW
    retention.admit_after = needed
    for gap in gaps[: needed - 1]:
        retention.record_request(1, now := now + gap / 1000)
        refused = retention.admit(1, KIB, now, 0, unprotected)
        assert refused == Decision(refusal=Refusal.RARE)
    retention.record_request(1, now)
    assert keys(retention.admit(1, KIB, now, 0, unprotected)) == [0]


@pytest.mark.parametrize("days", [0, 1, 3, 7, 25])
def test_second_request_is_admitted_days_after_the_first(days: int) -> None:
    retention = filled(100 * KIB)
    retention.record_request(1, NOW)
    now = days_pass(retention, days)
    retention.record_request(1, now)
    assert retention.is_admitted(1, now)
    assert keys(retention.admit(1, KIB, now, 0, unprotected)) == [0]


def test_requests_long_apart_do_not_reach_admission() -> None:
    retention = Retention[int](admit_after=3)
    now = NOW
    for _ in range(10):
        retention.record_request(1, now)
        now = days_pass(retention, 14, now)
    assert not retention.is_admitted(1, now)


@given(st.lists(st.tuples(KEYS, SIZES), max_size=30))
def test_content_that_is_requested_once_evicts_nothing(scan: list[tuple[int, int]]) -> None:
    retention = filled(KIB, 100, 50 * KIB)
    for number, (_, size) in enumerate(scan, 100):
        retention.record_request(number, NOW + number)
        assert retention.admit(number, size + 1, NOW + number, 0, unprotected).refusal is Refusal.RARE
    assert {0, 1, 2} == {key for key in range(200) if key in retention}


def test_new_content_is_ranked_at_its_first_request_with_admit_after_one() -> None:
    retention = filled(100 * KIB)
    retention.admit_after = 1
    assert keys(retention.admit(requested(retention, 1, 1), KIB, NOW, 0, unprotected)) == [0]


# -- victims


def test_content_with_the_fewest_requests_for_its_size_is_evicted_first() -> None:
    retention = filled(KIB, 100 * KIB, 100 * KIB)
    retention.record_request(2, NOW)
    assert keys(retention.evict(201 * KIB, NOW, unprotected)) == [1, 2, 0]


def test_least_recently_requested_of_equals_is_evicted_first() -> None:
    retention = filled(KIB, KIB)
    retention.record_request(1, NOW + 1)
    retention.record_request(0, NOW + 1)
    assert keys(retention.evict(1, NOW + 1, unprotected)) == [1]


def test_content_that_is_requested_more_than_the_new_one_is_not_evicted() -> None:
    retention = filled(KIB, requests=5)
    new_key = requested(retention, 1, 3)
    assert retention.admit(new_key, KIB, NOW, 0, unprotected) == Decision(refusal=Refusal.UNWANTED)
    assert 0 in retention


@given(st.lists(SIZES, max_size=12), SIZES, st.integers(2, 5), st.sets(KEYS), st.data())
def test_new_content_evicts_enough_lower_ranked_content_or_nothing(
    sizes: list[int], size: int, requests: int, protected: set[int], data: st.DataObject
) -> None:
    retention = filled(*sizes)
    for key in data.draw(st.lists(st.integers(0, max(0, len(sizes) - 1)), max_size=12)) if sizes else []:
        retention.record_request(key, NOW)
    new_key = requested(retention, 99, requests)
    scores = {key: retention.score(key, NOW) for key in range(len(sizes))}
    decision = retention.admit(new_key, size, NOW, 0, lambda key: key in protected)
    own = requests / math.sqrt(max(1, math.ceil(size / KIB)))
    if decision.refusal:
        assert decision.victims == ()
        assert sorted(key for key in range(len(sizes)) if key in retention) == list(range(len(sizes)))
        affordable = [sizes[key] for key in scores if key not in protected and scores[key] < own]
        assert sum(affordable) < size
    else:
        assert sum(victim.size for victim in decision.victims) >= size
        assert sum(victim.size for victim in decision.victims[:-1]) < max(1, size)
        assert not protected & set(keys(decision))
        assert all(scores[key] < own for key in keys(decision))
        assert all(key not in retention for key in keys(decision))


@given(st.lists(SIZES, max_size=12), st.integers(0, 99 * KIB), st.sets(KEYS))
def test_evict_frees_space_from_all_unprotected_content(sizes: list[int], needed: int, protected: set[int]) -> None:
    retention = filled(*sizes)
    decision = retention.evict(needed, NOW, lambda key: key in protected)
    freed = sum(victim.size for victim in decision.victims)
    assert not protected & set(keys(decision))
    if freed < needed:
        assert decision.refusal is Refusal.IN_USE
        assert set(keys(decision)) == set(range(len(sizes))) - protected
    else:
        assert decision.refusal is None


@given(st.lists(st.tuples(st.sampled_from("xyzm"), st.floats(0, DAY)), max_size=40))
def test_additional_requests_never_lower_a_rank(events: list[tuple[str, float]]) -> None:
    """Key 1 is requested whenever key 0 is, and more often."""
    retention, now, number = filled(*(9 * KIB for _ in range(2)), KIB, 2 * KIB), NOW, 99
    for event, gap in events:
        now += gap
        if event == "x":
            retention.record_request(0, now)
        if event in "xy":
            retention.record_request(1, now)
        if event == "z":
            number = requested(retention, number + 1, 3, now)
            retention.admit(number, 4 * KIB, now, 0, lambda key: key < 2)
        if event == "m":
            retention.evict(1, now, lambda key: key < 2)
        assert retention.score(1, now) >= retention.score(0, now)
    assert keys(retention.evict(1, now, lambda key: key > 1)) == [0]


def test_content_that_is_no_longer_requested_is_evicted_as_the_store_turns_over() -> None:
    retention = filled(*(100 * KIB for _ in range(10)))
    requested(retention, 0, 20)
    for new_key in range(10, 1000):
        decision = retention.admit(requested(retention, new_key, 2), 100 * KIB, NOW, 0, unprotected)
        if decision.refusal is None:
            retention.record_stored(new_key, 100 * KIB, NOW)
        if 0 not in retention:
            break
    assert 50 < new_key < 999, "it is evicted, but not at once"


# -- other reasons, and explanations


def test_eviction_has_reason_score_requests_and_idle_time() -> None:
    retention = filled(4 * KIB, requests=2)
    later = NOW + 3600
    expected = Eviction(0, 4 * KIB, Reason.SPACE, 1.0, 2 * 2 ** (-3600 / retention.half_life), 3600.0)
    assert retention.evict(1, later, unprotected).victims == (expected,)
    assert retention.clock()[0] == 1.0, "the clock rises to the rank of the victim"


def test_content_without_requests_for_a_month_is_idle_unless_protected() -> None:
    retention = filled(KIB, KIB, KIB, KIB)
    now = days_pass(retention, 29)
    assert retention.evict_idle(now, unprotected) == []
    retention.record_request(3, now)
    now = days_pass(retention, 1, now)
    first = retention.evict_idle(now, lambda key: key == 1, limit=1)
    second = retention.evict_idle(now, lambda key: key == 1)
    assert [(one.key, one.reason) for one in first] == [(0, Reason.IDLE)]
    assert [(one.key, one.reason) for one in second] == [(2, Reason.IDLE)]
    assert first[0].idle == pytest.approx(30 * DAY)
    assert [key for key in range(4) if key in retention] == [1, 3]


def test_only_stored_content_can_be_purged() -> None:
    retention = filled(KIB)
    purged = retention.purge(0, NOW)
    assert purged is not None
    assert (purged.key, purged.reason) == (0, Reason.PURGED)
    assert retention.purge(0, NOW) is None


def test_evicted_content_keeps_its_requests_and_can_be_restored() -> None:
    retention = filled(KIB, requests=3)
    retention.evict(1, NOW, unprotected)
    assert (retention.requests(0, NOW), len(retention), retention.absent) == (3.0, 0, 1)
    retention.record_stored(0, KIB, NOW)
    assert (0 in retention, retention.bytes, retention.absent) == (True, KIB, 0)


# -- cost


def test_eviction_examines_only_the_content_up_to_the_last_victim() -> None:
    retention, examined = filled(*(KIB for _ in range(5000))), list[int]()

    def is_protected(key: int) -> bool:
        examined.append(key)
        return key < 10

    assert keys(retention.evict(3 * KIB, NOW, is_protected)) == [10, 11, 12]
    assert examined == list(range(13))


def test_refusal_examines_no_content_with_a_higher_rank() -> None:
    retention = filled(*(KIB for _ in range(5000)), requests=3)
    examined = list[int]()

    def is_protected(key: int) -> bool:
        examined.append(key)
        return False

    decision = retention.admit(requested(retention, 9999, 2), KIB, NOW, 0, is_protected)
    assert (decision.refusal, examined) == (Refusal.UNWANTED, [])
