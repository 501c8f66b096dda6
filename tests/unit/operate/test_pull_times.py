"""The time of a pull, and what it was spent on."""

import logging

import pytest
from hubcache.operate import pull_times, pulls
from hubcache.serve.messages import Result
from hypothesis import given
from hypothesis import strategies as st
from support.pulls import LAYER, PullHarness, dockerd, pull_harness_fixture

harness = pull_harness_fixture()


def slowest(harness: PullHarness) -> tuple[str, float]:
    harness.quiet()
    return harness.only.slowest, round(harness.only.slowest_seconds, 3)


def test_slow_manifest_is_what_the_time_was_spent_on(harness: PullHarness) -> None:
    harness.request("manifest", "12", Result.REVALIDATED, duration=3.0, first_byte=3.0)
    harness.request("blob", LAYER, duration=1.0)
    assert slowest(harness) == (pull_times.MANIFEST, 3)


def test_slow_token_is_what_the_time_was_spent_on(harness: PullHarness) -> None:
    harness.request("manifest", "12", Result.MISS, duration=3.0, first_byte=3.0, token_wait=2.5)
    assert slowest(harness) == (pull_times.AUTHENTICATION, 2.5)


def test_token_request_of_the_client_belongs_to_the_pull_that_follows(harness: PullHarness) -> None:
    harness.end("token", "", Result.BYPASS, repository="", duration=2.0)
    harness.request("manifest", "12", Result.BYPASS, duration=1.0, first_byte=1.0)
    assert slowest(harness) == (pull_times.AUTHENTICATION, 2)
    assert harness.only.duration == 3


def test_token_request_long_before_belongs_to_no_pull(harness: PullHarness) -> None:
    harness.end("token", "", Result.BYPASS, repository="", duration=2.0)
    harness.now += pulls.TOKEN_SECONDS
    harness.request("manifest", "12", Result.BYPASS, duration=1.0, first_byte=1.0)
    assert slowest(harness) == (pull_times.MANIFEST, 1)


def test_slow_download_and_slow_client_are_told_apart(harness: PullHarness) -> None:
    harness.request("blob", LAYER, Result.MISS, duration=10.0, source_wait=8.0, client_wait=1.0)
    assert slowest(harness) == (pull_times.DOWNLOAD, 8)
    other = PullHarness()
    other.request("blob", LAYER, Result.MISS, duration=10.0, source_wait=1.0, client_wait=8.0)
    assert slowest(other) == (pull_times.CLIENT, 8)


def test_time_between_requests_is_the_clients_own(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    harness.now += 4
    harness.request("blob", LAYER, duration=1.0, client_wait=1.0)
    assert slowest(harness) == (pull_times.BETWEEN, 4)


def test_short_pull_has_nothing_worth_mentioning(harness: PullHarness) -> None:
    dockerd(harness)
    assert slowest(harness) == ("", 0)


def test_time_of_a_long_pull_is_in_its_line(harness: PullHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    harness.request("blob", LAYER, Result.MISS, 5_000_000, duration=10.0, source_wait=8.0)
    harness.quiet()
    assert caplog.messages[0].endswith(
        "1 request, 5.0 MB in 10 s, all from the registry; 8.0 s of it downloading from the registry"
    )


@given(st.lists(st.tuples(st.floats(100, 200), st.floats(0, 50), st.sampled_from(Result)), min_size=1, max_size=20))
def test_seconds_add_up_to_the_duration(requests: list[tuple[float, float, Result]]) -> None:
    harness = PullHarness()
    for harness.now, duration, result in sorted(requests, key=lambda request: request[0]):
        harness.end("blob", LAYER, result, duration=duration, source_wait=duration / 3, client_wait=duration / 4)
    (found,) = harness.pulls._open.values()
    assert sum(found._times.seconds().values()) == pytest.approx(found.summary().duration, abs=1e-6)


def test_seconds_of_many_requests_add_up_to_the_duration(harness: PullHarness) -> None:
    for _ in range(2 * pull_times._MAX_SPANS):
        harness.now += 1
        harness.request("blob", LAYER, duration=0.5, first_byte=0.25, source_wait=0.25)
    (found,) = harness.pulls._open.values()
    assert sum(found._times.seconds().values()) == pytest.approx(harness.now - 1001, rel=0.02)
