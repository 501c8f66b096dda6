"""Which tags are worth a look before a client asks, when, and how much."""

import pytest
from hubcache.decide.tag_changes import TagChanges
from hubcache.decide.watched_tag import CONSTANTLY, OFTEN, WatchedTag
from hubcache.oci.digest import Digest

DAY, HOUR = 86400.0, 3600.0
NOW = 20_000 * DAY
LIFETIME, LEAD = 60.0, 10.0
ONE, TWO = Digest.of(b"1"), Digest.of(b"2")


def watched(requests: int, *, since: float = NOW, now: float = NOW, tag: str = "1") -> WatchedTag:
    """Asked for so many times just now, and validated by that."""
    found = WatchedTag("registry-1.docker.io", "library/app", tag, "any", since, since)
    for _ in range(requests):
        found.count_request(now, LIFETIME)
    found.record_validation(ONE, now)
    return found


def due(tag: WatchedTag, now: float = NOW) -> float | None:
    return tag.next_validation(now, LIFETIME, LEAD)


def test_tag_that_is_asked_for_often_is_looked_at_before_its_lifetime_ends() -> None:
    found = due(watched(5))
    assert found is not None
    assert LIFETIME - 2 * LEAD <= found - NOW <= LIFETIME - LEAD


@pytest.mark.parametrize("requests", [0, 1, 2])
def test_tag_that_is_asked_for_seldom_is_not(requests: int) -> None:
    assert due(watched(requests)) is None


def test_tags_that_are_asked_for_together_are_not_looked_at_together() -> None:
    assert len({due(watched(5, tag=str(number))) for number in range(100)}) == 100


@pytest.mark.parametrize("requests", [4, 16, 256])
def test_tag_that_nobody_asks_for_any_more_costs_a_look_or_some(requests: int) -> None:
    tag, now, looks = watched(requests), NOW, 0
    while (at := due(tag, now)) is not None:
        now, looks = max(at, now), looks + 1
        tag.unused_validations += 1
        tag.record_validation(ONE, now)
    assert looks <= max(1, requests.bit_length() - 2)
    assert now - NOW <= looks * LIFETIME


def test_look_that_somebody_made_use_of_is_no_loss() -> None:
    tag = watched(6)
    tag.unused_validations = 3
    tag.count_request(NOW + 10, LIFETIME)
    assert tag.expected_requests(NOW + 10, LIFETIME) > 6


def test_tag_that_did_not_move_for_weeks_is_looked_at_seldom() -> None:
    new, old = watched(8), watched(8, since=NOW - 21 * DAY)
    assert due(new) == pytest.approx(NOW + LIFETIME, abs=2 * LEAD)
    found = due(old)
    assert found is not None
    assert found >= NOW + HOUR


def test_tag_that_clients_would_validate_themselves_each_time_is_validated_for_them() -> None:
    """A look ahead then replaces a client's own."""
    tag = watched(int(CONSTANTLY) + 1, since=NOW - 21 * DAY)
    found = due(tag)
    assert found is not None
    assert found < NOW + LIFETIME


def test_tag_that_moves_nightly_is_looked_at_at_night_although_nobody_asks_then() -> None:
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


def test_tag_that_moves_nightly_and_that_nobody_pulls_is_left_alone() -> None:
    tag = watched(1, since=NOW - 7 * DAY)
    tag.changes = TagChanges(NOW - 7 * DAY, tuple(NOW - day * DAY for day in range(6, -1, -1)))
    assert due(tag) is None


def test_move_is_noticed_once() -> None:
    tag = watched(5)
    tag.record_validation(ONE, NOW + 50)
    assert tag.changes is None
    tag.record_validation(TWO, NOW + 100)
    tag.record_validation(TWO, NOW + 150)
    assert tag.changes is not None
    assert tag.changes.times == (NOW + 75,)


def test_registry_that_tells_no_digest_shows_no_move() -> None:
    tag = watched(5)
    tag.record_validation(None, NOW + 50)
    tag.record_validation(ONE, NOW + 100)
    assert tag.changes is None


def test_popular_is_worth_more_and_so_is_restless() -> None:
    now = NOW + 50
    quiet, popular, restless = watched(5), watched(50), watched(5)
    restless.changes = TagChanges(NOW - HOUR, (NOW - 600, NOW - 300, NOW))
    worths = [tag.benefit(now, LIFETIME) for tag in (quiet, popular, restless)]
    assert worths[0] < worths[1]
    assert worths[0] < worths[2]
    assert worths[0] >= OFTEN


def test_clock_that_was_set_back_makes_nothing_more_popular() -> None:
    tag = watched(5)
    tag.count_request(NOW - DAY, LIFETIME)
    assert tag.expected_requests(NOW - DAY, LIFETIME) == 6.0
