"""Requests of a client for a repository become pulls, and a pull becomes a line of the log."""

import json
import logging
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.operate import open_pull, pull_times, pulls
from hubcache.operate.pull import Pull, printable, seconds_text, size_text
from hubcache.operate.pulls import Pulls
from hubcache.operate.served_request import ServedRequest
from hubcache.serve.messages import Listener, Request, Result
from hypothesis import given
from hypothesis import strategies as st
from support.users import until

CLIENT = "10.0.0.7"
INDEX, MANIFEST, CONFIG, LAYER, OTHER_LAYER = (str(Digest.of(text)) for text in (b"i", b"m", b"c", b"l", b"o"))


class Harness:
    """Pulls with a clock of their own, which also gives the times of requests."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.counts: list[str] = []
        self.pulls = Pulls(self.counts.append, lambda: self.now)

    def begin(
        self,
        kind: str,
        reference: str,
        method: str = "GET",
        repository: str = "library/debian",
        registry: str = HUB_HOST,
    ) -> None:
        path = f"/v2/{repository}/{kind}s/{reference}"
        self.pulls.begin(Request(method, path, Registry.parse(registry), Listener.MIRROR, {}, client=CLIENT))

    def end(self, kind: str, reference: str, result: Result = Result.HIT, sent: int = 100, **changes: Any) -> None:
        """Have a request end that has lasted for `duration` seconds."""
        values: dict[str, Any] = {
            "ended": self.now,
            "client": CLIENT,
            "listener": Listener.MIRROR,
            "kind": kind,
            "result": result,
            "status": 200,
            "registry": HUB_HOST,
            "repository": "library/debian",
            "reference": reference,
            "size": sent,
            "sent": sent,
            "first_byte": 0.0,
            "duration": 0.0,
            "is_complete": True,
            "is_private": False,
        }
        self.pulls.add(ServedRequest(**values | changes))

    def request(self, kind: str, reference: str, result: Result = Result.HIT, sent: int = 100, **changes: Any) -> None:
        """Have a request begin and end `duration` seconds later."""
        method = changes.get("method", "GET")
        named = {name: changes[name] for name in ("repository", "registry") if name in changes}
        self.begin(kind, reference, method, **named)
        self.now += changes.get("duration", 0.0)
        self.end(kind, reference, result, 0 if method == "HEAD" else sent, **changes)

    def quiet(self, seconds: float = pulls.QUIET_SECONDS) -> None:
        """Let time pass without requests."""
        self.now += seconds
        self.pulls.end_quiet()

    @property
    def only(self) -> Pull:
        (found,) = self.pulls.recent
        return found


@pytest.fixture
def harness() -> Harness:
    return Harness()


def dockerd(harness: Harness, tag: str = "12", result: Result = Result.HIT) -> None:
    """Send the requests of Docker Engine in their order."""
    harness.request("manifest", tag, result, method="HEAD")
    for kind, reference in (("manifest", INDEX), ("manifest", MANIFEST), ("blob", CONFIG), ("blob", LAYER)):
        harness.request(kind, reference, result, 1000)


def test_requests_of_docker_are_one_pull(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dockerd(harness)
    harness.quiet(pulls.QUIET_SECONDS - 0.1)
    assert (len(harness.pulls.running), len(harness.pulls.recent), caplog.messages) == (1, 0, [])
    harness.quiet(0.1)
    found = harness.only
    assert (found.image, found.requests, found.sent, found.result) == ("debian:12", 5, 4000, "hit")
    assert harness.pulls.running == []
    assert harness.counts == ["hit"]
    assert caplog.messages == ["hubcache: pull debian:12 by 10.0.0.7: 5 requests, 4.0 kB in 0.00 s, all from the store"]


def test_requests_of_containerd_are_one_pull(harness: Harness) -> None:
    """It resolves the tag by HEAD, and requests everything else by digest."""
    harness.request("manifest", "12", method="HEAD")
    harness.request("manifest", INDEX)
    harness.request("manifest", MANIFEST)
    harness.begin("blob", CONFIG)
    harness.begin("blob", LAYER)
    harness.begin("blob", OTHER_LAYER)
    for blob in (LAYER, CONFIG, OTHER_LAYER):
        harness.end("blob", blob)
    harness.quiet()
    assert (harness.only.image, harness.only.requests) == ("debian:12", 6)


def test_pull_lasts_while_a_request_is_answered(harness: Harness) -> None:
    harness.request("manifest", "12")
    harness.begin("blob", LAYER)
    harness.quiet(3600)
    assert [(found.requests, found.running) for found in harness.pulls.running] == [(1, 1)]
    harness.end("blob", LAYER, duration=3600.0)
    harness.quiet()
    assert (harness.only.requests, harness.only.duration, harness.only.running) == (2, 3600, 0)


def test_request_without_an_end_does_not_keep_a_pull_for_ever(harness: Harness) -> None:
    harness.request("manifest", "12")
    harness.begin("blob", LAYER)
    harness.quiet(pulls.STUCK_SECONDS)
    assert harness.only.requests == 1


def test_repeated_answer_does_not_end_a_request_that_is_answered(harness: Harness) -> None:
    harness.request("manifest", "12")
    harness.begin("blob", LAYER)
    harness.end("manifest", MANIFEST, is_repeated=True)
    harness.quiet()
    assert [found.running for found in harness.pulls.running] == [1]


def test_check_of_a_tag_is_counted_and_is_no_pull(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    harness.request("manifest", "12", method="HEAD")
    assert harness.pulls.running == []
    harness.quiet()
    assert (harness.counts, list(harness.pulls.recent), caplog.messages) == ([pulls.CHECK], [], [])


def test_image_that_the_client_has_is_a_pull_of_its_manifest(harness: Harness) -> None:
    harness.request("manifest", "12", sent=0, status=304)
    harness.quiet()
    assert (harness.only.result, harness.only.sent) == ("hit", 0)


def test_pull_by_digest_is_named_by_the_first_digest(harness: Harness) -> None:
    harness.request("manifest", INDEX)
    harness.request("manifest", MANIFEST)
    harness.request("blob", LAYER)
    harness.quiet()
    assert harness.only.image == f"debian@{INDEX}"


def test_blobs_alone_are_named_by_the_repository(harness: Harness) -> None:
    harness.request("blob", LAYER, registry="ghcr.io", repository="owner/name")
    harness.quiet()
    assert harness.only.image == "ghcr.io/owner/name"


def test_two_tags_at_once_are_one_pull(harness: Harness) -> None:
    """Which tag a blob belongs to cannot be known."""
    for tag in ("12", "11"):
        harness.request("manifest", tag)
    harness.begin("blob", LAYER)
    harness.request("manifest", "10")
    harness.end("blob", LAYER)
    harness.request("manifest", "9")
    harness.quiet()
    assert [found.image for found in harness.pulls.recent] == ["debian:12, debian:11, debian:10", "debian:9"]
    many = Harness()
    for tag in "abcde":
        many.request("manifest", tag)
    many.quiet()
    assert many.only.image == "debian:a, debian:b, debian:c and 2 more"


def test_second_tag_after_the_blobs_of_the_first_is_another_pull(harness: Harness) -> None:
    dockerd(harness, "12")
    dockerd(harness, "11")
    harness.quiet()
    assert [(found.image, found.requests) for found in harness.pulls.recent] == [("debian:12", 5), ("debian:11", 5)]


def test_tag_after_one_that_was_refused_is_another_pull(harness: Harness) -> None:
    for method in ("HEAD", "GET"):
        harness.request("manifest", "no", Result.ERROR, method=method, status=404)
    dockerd(harness)
    harness.quiet()
    assert [(found.image, found.result) for found in harness.pulls.recent] == [
        ("debian:no", "failed"),
        ("debian:12", "hit"),
    ]


def test_many_clients_behind_one_address_do_not_keep_a_pull_for_ever(harness: Harness) -> None:
    harness.request("manifest", "12")
    harness.begin("blob", LAYER)
    harness.now += pulls.MAX_SECONDS
    harness.request("manifest", "12")
    assert harness.only.requests == 1
    assert [found.running for found in harness.pulls.running] == [1]


def test_other_clients_registries_and_repositories_are_other_pulls(harness: Harness) -> None:
    harness.request("manifest", "12")
    changes = {"client": "10.0.0.8", "registry": "ghcr.io", "repository": "a/b", "listener": Listener.PROXY}
    for name, value in changes.items():
        harness.end("manifest", "12", **{name: value})
    harness.quiet()
    assert len(harness.pulls.recent) == 5


def test_ranges_of_a_blob_add_up(harness: Harness) -> None:
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
    harness: Harness, results: tuple[Result, Result], expected: str
) -> None:
    harness.request("manifest", "12", results[0], 100)
    harness.request("blob", LAYER, results[1], 1000)
    harness.quiet()
    fetched = sum(size for result, size in zip(results, (100, 1000), strict=True) if result is Result.MISS)
    assert harness.only.result == expected
    assert (harness.only.from_upstream, harness.only.from_store) == (fetched, 1100 - fetched)
    assert harness.only.requests_upstream == sum(each in (Result.MISS, Result.REVALIDATED) for each in results)


def test_private_pull_says_so(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
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


def test_refused_pull_says_why(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
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


def test_image_that_is_refused_by_head_alone_is_a_failed_pull(harness: Harness) -> None:
    harness.request("manifest", "no", Result.ERROR, method="HEAD", status=404, error="manifest unknown")
    harness.quiet(pulls.RETRY_SECONDS)
    assert harness.only.result == "failed"


def test_challenge_before_the_token_is_no_failure(harness: Harness) -> None:
    harness.request("manifest", "12", Result.ERROR, method="HEAD", status=401, error="authentication required")
    dockerd(harness)
    harness.quiet()
    assert (harness.only.result, harness.only.requests) == ("hit", 6)


def test_blob_that_was_cut_short_is_a_failure_until_it_is_complete(harness: Harness) -> None:
    harness.request("manifest", "12")
    harness.request("blob", LAYER, Result.MISS, 10, is_complete=False)
    harness.quiet()
    assert [found.error for found in harness.pulls.running] == [f"blob {LAYER[:19]}: the client disconnected"]
    harness.request("blob", LAYER, Result.HIT, 90, status=206)
    harness.quiet()
    assert (harness.only.result, harness.only.error, harness.only.sent) == ("mixed", "", 200)


def test_later_failure_of_content_that_was_received_does_not_count(harness: Harness) -> None:
    harness.request("manifest", "12")
    harness.request("blob", LAYER)
    harness.request("blob", LAYER, is_complete=False)
    harness.quiet()
    assert harness.only.result == "hit"


def test_push_is_no_pull(harness: Harness) -> None:
    harness.request("blob", LAYER, Result.BYPASS, method="HEAD", status=404)
    harness.request("manifest", "12", Result.BYPASS, method="PUT", status=201)
    harness.quiet()
    assert (list(harness.pulls.recent), harness.counts, harness.pulls.running) == ([], [], [])


def test_signatures_and_referrers_are_counted_with_the_pull_and_are_none_alone(harness: Harness) -> None:
    signature = INDEX.replace(":", "-") + ".sig"
    harness.request("manifest", signature, Result.ERROR, status=404, error="manifest unknown")
    harness.end("referrers", INDEX, Result.ERROR, status=404)
    harness.quiet()
    assert list(harness.pulls.recent) == []
    dockerd(harness)
    harness.end("manifest", signature, Result.ERROR, status=404, error="manifest unknown")
    harness.end("referrers", INDEX, Result.ERROR, status=404)
    harness.quiet()
    assert (harness.only.result, harness.only.requests) == ("hit", 7)


@pytest.mark.parametrize("path", ["/v2/", "/v2/_catalog", "/v2/UPPER/manifests/1", "/v2/a/manifests/\x1b[2J", "/x"])
def test_paths_that_name_no_image_are_no_pull(harness: Harness, path: str) -> None:
    harness.pulls.begin(Request("GET", path, Registry.parse(HUB_HOST), Listener.MIRROR, {}, client=CLIENT))
    harness.end("other", "", repository="", status=400)
    assert harness.pulls._open == {}


def test_open_pulls_are_bounded(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "MAX_OPEN", 10)
    for number in range(30):
        harness.request("manifest", "1", repository=f"a/b{number}")
    assert (len(harness.pulls.running), len(harness.pulls.recent)) == (10, 20)
    assert harness.pulls.recent[0].image == "a/b0:1"


def test_only_the_newest_running_pulls_are_summarized(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A summary sorts the times of all requests: those of a thousand pulls would occupy the event loop."""
    monkeypatch.setattr(pulls, "MAX_RUNNING", 3)
    for number in range(10):
        harness.request("manifest", "1", repository=f"a/b{number}")
    assert [pull.image for pull in harness.pulls.running] == ["a/b7:1", "a/b8:1", "a/b9:1"]


def test_what_is_remembered_of_one_pull_is_bounded(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_pull, "_MAX_REFERENCES", 10)
    for number in range(1000):
        harness.request("manifest", f"t{number}")
        harness.request("manifest", f"f{number}", Result.ERROR, status=404)
    (found,) = harness.pulls._open.values()
    assert max(map(len, (found._tags, found._received, found._failures))) == 10
    assert len(found._times._spans) <= pull_times._MAX_SPANS
    assert harness.pulls.running[0].requests == 2000


async def test_pulls_end_by_themselves_and_at_the_close(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "_TICK_SECONDS", 0.001)
    harness.request("manifest", "12")
    harness.now += pulls.QUIET_SECONDS
    harness.pulls.start()
    await until(lambda: harness.pulls.recent)
    harness.request("manifest", "11")
    await harness.pulls.close()
    assert [found.image for found in harness.pulls.recent] == ["debian:12", "debian:11"]


# -- what the time was spent on -----------------------------------------------------------------------------------


def slowest(harness: Harness) -> tuple[str, float]:
    harness.quiet()
    return harness.only.slowest, round(harness.only.slowest_seconds, 3)


def test_slow_manifest_is_what_the_time_was_spent_on(harness: Harness) -> None:
    harness.request("manifest", "12", Result.REVALIDATED, duration=3.0, first_byte=3.0)
    harness.request("blob", LAYER, duration=1.0)
    assert slowest(harness) == (pull_times.MANIFEST, 3)


def test_slow_token_is_what_the_time_was_spent_on(harness: Harness) -> None:
    harness.request("manifest", "12", Result.MISS, duration=3.0, first_byte=3.0, token_wait=2.5)
    assert slowest(harness) == (pull_times.AUTHENTICATION, 2.5)


def test_token_request_of_the_client_belongs_to_the_pull_that_follows(harness: Harness) -> None:
    harness.end("token", "", Result.BYPASS, repository="", duration=2.0)
    harness.request("manifest", "12", Result.BYPASS, duration=1.0, first_byte=1.0)
    assert slowest(harness) == (pull_times.AUTHENTICATION, 2)
    assert harness.only.duration == 3


def test_token_request_long_before_belongs_to_no_pull(harness: Harness) -> None:
    harness.end("token", "", Result.BYPASS, repository="", duration=2.0)
    harness.now += pulls.TOKEN_SECONDS
    harness.request("manifest", "12", Result.BYPASS, duration=1.0, first_byte=1.0)
    assert slowest(harness) == (pull_times.MANIFEST, 1)


def test_slow_download_and_slow_client_are_told_apart(harness: Harness) -> None:
    harness.request("blob", LAYER, Result.MISS, duration=10.0, source_wait=8.0, client_wait=1.0)
    assert slowest(harness) == (pull_times.DOWNLOAD, 8)
    other = Harness()
    other.request("blob", LAYER, Result.MISS, duration=10.0, source_wait=1.0, client_wait=8.0)
    assert slowest(other) == (pull_times.CLIENT, 8)


def test_time_between_requests_is_the_clients_own(harness: Harness) -> None:
    harness.request("manifest", "12")
    harness.now += 4
    harness.request("blob", LAYER, duration=1.0, client_wait=1.0)
    assert slowest(harness) == (pull_times.BETWEEN, 4)


def test_short_pull_has_nothing_worth_mentioning(harness: Harness) -> None:
    dockerd(harness)
    assert slowest(harness) == ("", 0)


def test_time_of_a_long_pull_is_in_its_line(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    harness.request("blob", LAYER, Result.MISS, 5_000_000, duration=10.0, source_wait=8.0)
    harness.quiet()
    assert caplog.messages[0].endswith(
        "1 request, 5.0 MB in 10 s, all from the registry; 8.0 s of it downloading from the registry"
    )


@given(st.lists(st.tuples(st.floats(100, 200), st.floats(0, 50), st.sampled_from(Result)), min_size=1, max_size=20))
def test_seconds_add_up_to_the_duration(requests: list[tuple[float, float, Result]]) -> None:
    harness = Harness()
    for harness.now, duration, result in sorted(requests, key=lambda request: request[0]):
        harness.end("blob", LAYER, result, duration=duration, source_wait=duration / 3, client_wait=duration / 4)
    (found,) = harness.pulls._open.values()
    assert sum(found._times.seconds().values()) == pytest.approx(found.summary().duration, abs=1e-6)


def test_seconds_of_many_requests_add_up_to_the_duration(harness: Harness) -> None:
    for _ in range(2 * pull_times._MAX_SPANS):
        harness.now += 1
        harness.request("blob", LAYER, duration=0.5, first_byte=0.25, source_wait=0.25)
    (found,) = harness.pulls._open.values()
    assert sum(found._times.seconds().values()) == pytest.approx(harness.now - 1001, rel=0.02)


# -- the line and its fields ---------------------------------------------------------------------------------------


def test_origin_of_nearly_all_bytes_is_the_one_that_is_named(harness: Harness) -> None:
    origins = []
    for stored, fetched in ((10, 0), (0, 10), (1000, 9), (9, 1000), (1000, 1000), (0, 0)):
        made = Harness()
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


def test_fields_are_plain_json(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
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
