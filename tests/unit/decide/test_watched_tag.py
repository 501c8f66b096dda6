"""Watched tags: which are validated before a client asks, when, and the benefit of that."""

import pytest
from hubcache.decide.tag_changes import TagChanges
from hubcache.decide.watched_tag import CONSTANTLY, OFTEN, WatchedTag
from hubcache.oci.digest import Digest

DAY, HOUR = 86400.0, 3600.0
NOW = 20_000 * DAY
LIFETIME, LEAD = 60.0, 10.0
ONE, TWO = Digest.of(b"1"), Digest.of(b"2")


def watched(requests: int, *, since: float = NOW, now: float = NOW, tag: str = "1") -> WatchedTag:
    """Return a tag that was requested this many times at `now`, and validated then."""
    found = WatchedTag("registry-1.docker.io", "library/app", tag, "any", since, since)
    for _ in range(requests):
        found.count_request(now, LIFETIME)
    found.record_validation(ONE, now)
    return found


def due(tag: WatchedTag, now: float = NOW) -> float | None:
    return tag.next_validation(now, LIFETIME, LEAD)


def test_tag_that_is_requested_often_is_validated_before_its_lifetime_ends() -> None:
    found = due(watched(5))
    assert found is not None
    assert LIFETIME - 2 * LEAD <= found - NOW <= LIFETIME - LEAD


@pytest.mark.parametrize("requests", [0, 1, 2])
def test_tag_that_is_requested_rarely_is_not_validated_ahead(requests: int) -> None:
    assert due(watched(requests)) is None


def test_tags_that_are_requested_together_are_not_validated_together() -> None:
    assert len({due(watched(5, tag=str(number))) for number in range(100)}) == 100


@pytest.mark.parametrize("requests", [4, 16, 256])
def test_tag_that_is_no_longer_requested_is_validated_a_few_times_only(requests: int) -> None:
    tag, now, validations = watched(requests), NOW, 0
    while (at := due(tag, now)) is not None:
        now, validations = max(at, now), validations + 1
        tag.unused_validations += 1
        tag.record_validation(ONE, now)
    assert validations <= max(1, requests.bit_length() - 2)
    assert now - NOW <= validations * LIFETIME


def test_request_resets_the_unused_validations() -> None:
    tag = watched(6)
    tag.unused_validations = 3
    tag.count_request(NOW + 10, LIFETIME)
    assert tag.expected_requests(NOW + 10, LIFETIME) > 6


def test_tag_that_did_not_change_for_weeks_is_validated_rarely() -> None:
    new, old = watched(8), watched(8, since=NOW - 21 * DAY)
    assert due(new) == pytest.approx(NOW + LIFETIME, abs=2 * LEAD)
    found = due(old)
    assert found is not None
    assert found >= NOW + HOUR


def test_tag_that_is_requested_constantly_is_validated_within_each_lifetime() -> None:
    """Each validation ahead then replaces one on behalf of a client."""
    tag = watched(int(CONSTANTLY) + 1, since=NOW - 21 * DAY)
    found = due(tag)
    assert found is not None
    assert found < NOW + LIFETIME


def test_tag_that_changes_nightly_is_validated_at_night_without_requests() -> None:
    tag = watched(5, since=NOW - 7 * DAY, now=NOW + 17 * HOUR)
    tag.changes = TagChanges(NOW - 7 * DAY, tuple(NOW + 3 * HOUR - day * DAY for day in range(6, -1, -1)))
    night = NOW + DAY + 3 * HOUR
    found, now = [], NOW + 18 * HOUR
    while (at := due(tag, now)) is not None and at < night + HOUR:
        now = max(now, at)
        found.append(now)
        tag.record_validation(ONE, now)
    assert len([time for time in found if abs(time - night) <= 600]) >= 6
    assert len(found) <= 24


def test_tag_that_changes_nightly_without_requests_is_not_validated() -> None:
    tag = watched(1, since=NOW - 7 * DAY)
    tag.changes = TagChanges(NOW - 7 * DAY, tuple(NOW - day * DAY for day in range(6, -1, -1)))
    assert due(tag) is None


def test_change_is_recorded_once() -> None:
    tag = watched(5)
    tag.record_validation(ONE, NOW + 50)
    assert tag.changes is None
    tag.record_validation(TWO, NOW + 100)
    tag.record_validation(TWO, NOW + 150)
    assert tag.changes is not None
    assert tag.changes.times == (NOW + 75,)


def test_validation_without_a_digest_is_not_a_change() -> None:
    tag = watched(5)
    tag.record_validation(None, NOW + 50)
    tag.record_validation(ONE, NOW + 100)
    assert tag.changes is None


def test_benefit_grows_with_popularity_and_with_changes() -> None:
    now = NOW + 50
    quiet, popular, changing = watched(5), watched(50), watched(5)
    changing.changes = TagChanges(NOW - HOUR, (NOW - 600, NOW - 300, NOW))
    benefits = [tag.benefit(now, LIFETIME) for tag in (quiet, popular, changing)]
    assert benefits[0] < benefits[1]
    assert benefits[0] < benefits[2]
    assert benefits[0] >= OFTEN


def test_clock_that_was_set_back_does_not_decay_the_count() -> None:
    tag = watched(5)
    tag.count_request(NOW - DAY, LIFETIME)
    assert tag.expected_requests(NOW - DAY, LIFETIME) == 6.0
