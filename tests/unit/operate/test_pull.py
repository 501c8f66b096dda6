"""The result of a pull, its line of the log, and its fields."""

import json
import logging
from typing import Any

import pytest
from hubcache.oci.registry import HUB_HOST
from hubcache.operate import pulls
from hubcache.operate.pull import printable, seconds_text, size_text
from hubcache.serve.messages import Result
from hypothesis import given
from hypothesis import strategies as st
from support.pulls import CLIENT, CONFIG, LAYER, OTHER_LAYER, PullHarness, dockerd, pull_harness_fixture

harness = pull_harness_fixture()


def test_ranges_of_a_blob_add_up(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    for _ in range(4):
        harness.request("blob", LAYER, sent=250, status=206)
    harness.quiet()
    assert (harness.only.sent, harness.only.result) == (1100, "hit")


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((Result.HIT, Result.HIT), "hit"),
        ((Result.REVALIDATED, Result.HIT), "hit"),
        ((Result.STALE, Result.HIT), "stale"),
        ((Result.MISS, Result.MISS), "miss"),
        ((Result.HIT, Result.MISS), "miss"),
        ((Result.MISS, Result.HIT), "mixed"),
    ],
)
def test_result_tells_where_the_content_came_from(
    harness: PullHarness, results: tuple[Result, Result], expected: str
) -> None:
    harness.request("manifest", "12", results[0], 100)
    harness.request("blob", LAYER, results[1], 1000)
    harness.quiet()
    fetched = sum(size for result, size in zip(results, (100, 1000), strict=True) if result is Result.MISS)
    assert harness.only.result == expected
    assert (harness.only.from_upstream, harness.only.from_store) == (fetched, 1100 - fetched)
    assert harness.only.requests_upstream == sum(each in (Result.MISS, Result.REVALIDATED) for each in results)


def test_private_pull_says_so(harness: PullHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for kind, reference, status in (("manifest", "1", 200), ("blob", CONFIG, 307), ("blob", LAYER, 307)):
        changes = {"repository": "team/secret", "is_private": True, "status": status}
        harness.request(kind, reference, Result.BYPASS, 500 if status == 200 else 30, **changes)
    harness.quiet()
    assert (harness.only.result, harness.only.is_private, harness.only.sent) == ("private", True, 500)
    assert caplog.messages[0].endswith(
        "3 requests, 500 bytes in 0.00 s, all from the registry, with the client's own credentials, 2 blobs redirected "
        "to another host"
    )
    assert "pull team/secret:1 by" in caplog.messages[0]


def test_refused_pull_says_why(harness: PullHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for method in ("HEAD", "GET"):
        harness.request("manifest", "no", Result.ERROR, 80, method=method, status=404, error="manifest unknown")
    harness.quiet(pulls.RETRY_SECONDS)
    assert (harness.only.result, harness.only.error, harness.only.sent) == (
        "failed",
        "manifest no: 404 manifest unknown",
        0,
    )
    assert caplog.messages == [
        "hubcache: pull debian:no by 10.0.0.7 failed: manifest no: 404 manifest unknown; 2 requests, 0 bytes in 0.00 s"
    ]
    assert harness.counts == ["failed"]


def test_image_that_is_refused_by_head_alone_is_a_failed_pull(harness: PullHarness) -> None:
    harness.request("manifest", "no", Result.ERROR, method="HEAD", status=404, error="manifest unknown")
    harness.quiet(pulls.RETRY_SECONDS)
    assert harness.only.result == "failed"


def test_challenge_before_the_token_is_no_failure(harness: PullHarness) -> None:
    harness.request("manifest", "12", Result.ERROR, method="HEAD", status=401, error="authentication required")
    dockerd(harness)
    harness.quiet()
    assert (harness.only.result, harness.only.requests) == ("hit", 6)


def test_blob_that_was_cut_short_is_a_failure_until_it_is_complete(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    harness.request("blob", LAYER, Result.MISS, 10, is_complete=False)
    harness.quiet()
    assert [found.error for found in harness.pulls.running] == [f"blob {LAYER[:19]}: the client disconnected"]
    harness.request("blob", LAYER, Result.HIT, 90, status=206)
    harness.quiet()
    assert (harness.only.result, harness.only.error, harness.only.sent) == ("mixed", "", 200)


def test_later_failure_of_content_that_was_received_does_not_count(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    harness.request("blob", LAYER)
    harness.request("blob", LAYER, is_complete=False)
    harness.quiet()
    assert harness.only.result == "hit"


def test_origin_of_nearly_all_bytes_is_the_one_that_is_named(harness: PullHarness) -> None:
    origins = []
    for stored, fetched in ((10, 0), (0, 10), (1000, 9), (9, 1000), (1000, 1000), (0, 0)):
        made = PullHarness()
        made.request("blob", LAYER, Result.HIT, stored)
        made.request("blob", OTHER_LAYER, Result.MISS, fetched)
        made.quiet()
        origins.append(made.only.sentence().partition(" s")[2])
    assert origins == [
        ", all from the store",
        ", all from the registry",
        ", almost all from the store",
        ", almost all from the registry",
        ", 1.0 kB from the store and 1.0 kB from the registry",
        "",
    ]


def test_fields_are_plain_json(harness: PullHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dockerd(harness)
    harness.quiet()
    fields: Any = vars(caplog.records[0])["fields"]
    assert json.loads(json.dumps(fields)) == {
        "event": "pull",
        "client": CLIENT,
        "listener": "mirror",
        "image": "debian:12",
        "registry": HUB_HOST,
        "repository": "library/debian",
        "started": 1000.0,
        "duration": 0.0,
        "sent": 4000,
        "from_store": 4000,
        "from_upstream": 0,
        "requests": 5,
        "requests_upstream": 0,
        "redirected": 0,
        "result": "hit",
        "slowest_seconds": 0.0,
        "is_private": False,
    }


def test_error_cannot_break_the_line() -> None:
    assert printable("a\nb\x1b[2Jc\u2028") == "a?b?[2Jc?"
    assert printable("x" * 300) == "x" * 200 + "..."


def test_sizes_and_durations_are_written_with_units() -> None:
    sizes = {
        0: "0 bytes",
        1: "1 byte",
        999: "999 bytes",
        1000: "1.0 kB",
        48_412_345: "48.4 MB",
        31 * 10**8: "3.1 GB",
    }
    assert {size: size_text(size) for size in sizes} == sizes
    assert [size_text(10**power) for power in (6, 9, 12, 15)] == ["1.0 MB", "1.0 GB", "1.0 TB", "1000.0 TB"]
    durations = {0.0: "0.00 s", 0.02: "0.02 s", 1.34: "1.3 s", 9.96: "10 s", 59.4: "59 s", 185.0: "3 min 5 s"}
    assert {seconds: seconds_text(seconds) for seconds in durations} == durations


@given(st.integers(0, 10**16))
def test_size_text_has_no_more_than_four_digits_before_the_point(size: int) -> None:
    number = size_text(size).split()[0]
    assert float(number) < 1000 or size >= 999_950_000_000_000
