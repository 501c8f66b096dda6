"""Requests of a client for a repository become pulls."""

import logging

import pytest
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.operate import open_pull, pull_times, pulls
from hubcache.serve.messages import Listener, Request, Result
from support.pulls import (
    CLIENT,
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    OTHER_LAYER,
    PullHarness,
    dockerd,
    pull_harness_fixture,
)
from support.users import until

harness = pull_harness_fixture()


def test_requests_of_docker_are_one_pull(harness: PullHarness, caplog: pytest.LogCaptureFixture) -> None:
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


def test_requests_of_containerd_are_one_pull(harness: PullHarness) -> None:
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


def test_pull_lasts_while_a_request_is_answered(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    harness.begin("blob", LAYER)
    harness.quiet(3600)
    assert [(found.requests, found.running) for found in harness.pulls.running] == [(1, 1)]
    harness.end("blob", LAYER, duration=3600.0)
    harness.quiet()
    assert (harness.only.requests, harness.only.duration, harness.only.running) == (2, 3600, 0)


def test_request_without_an_end_does_not_keep_a_pull_for_ever(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    harness.begin("blob", LAYER)
    harness.quiet(pulls.STUCK_SECONDS)
    assert harness.only.requests == 1


def test_repeated_answer_does_not_end_a_request_that_is_answered(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    harness.begin("blob", LAYER)
    harness.end("manifest", MANIFEST, is_repeated=True)
    harness.quiet()
    assert [found.running for found in harness.pulls.running] == [1]


def test_check_of_a_tag_is_counted_and_is_no_pull(harness: PullHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    harness.request("manifest", "12", method="HEAD")
    assert harness.pulls.running == []
    harness.quiet()
    assert (harness.counts, list(harness.pulls.recent), caplog.messages) == ([pulls.CHECK], [], [])


def test_image_that_the_client_has_is_a_pull_of_its_manifest(harness: PullHarness) -> None:
    harness.request("manifest", "12", sent=0, status=304)
    harness.quiet()
    assert (harness.only.result, harness.only.sent) == ("hit", 0)


def test_pull_by_digest_is_named_by_the_first_digest(harness: PullHarness) -> None:
    harness.request("manifest", INDEX)
    harness.request("manifest", MANIFEST)
    harness.request("blob", LAYER)
    harness.quiet()
    assert harness.only.image == f"debian@{INDEX}"


def test_blobs_alone_are_named_by_the_repository(harness: PullHarness) -> None:
    harness.request("blob", LAYER, registry="ghcr.io", repository="owner/name")
    harness.quiet()
    assert harness.only.image == "ghcr.io/owner/name"


def test_two_tags_at_once_are_one_pull(harness: PullHarness) -> None:
    """Which tag a blob belongs to cannot be known."""
    for tag in ("12", "11"):
        harness.request("manifest", tag)
    harness.begin("blob", LAYER)
    harness.request("manifest", "10")
    harness.end("blob", LAYER)
    harness.request("manifest", "9")
    harness.quiet()
    assert [found.image for found in harness.pulls.recent] == ["debian:12, debian:11, debian:10", "debian:9"]
    many = PullHarness()
    for tag in "abcde":
        many.request("manifest", tag)
    many.quiet()
    assert many.only.image == "debian:a, debian:b, debian:c and 2 more"


def test_second_tag_after_the_blobs_of_the_first_is_another_pull(harness: PullHarness) -> None:
    dockerd(harness, "12")
    dockerd(harness, "11")
    harness.quiet()
    assert [(found.image, found.requests) for found in harness.pulls.recent] == [("debian:12", 5), ("debian:11", 5)]


def test_tag_after_one_that_was_refused_is_another_pull(harness: PullHarness) -> None:
    for method in ("HEAD", "GET"):
        harness.request("manifest", "no", Result.ERROR, method=method, status=404)
    dockerd(harness)
    harness.quiet()
    assert [(found.image, found.result) for found in harness.pulls.recent] == [
        ("debian:no", "failed"),
        ("debian:12", "hit"),
    ]


def test_many_clients_behind_one_address_do_not_keep_a_pull_for_ever(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    harness.begin("blob", LAYER)
    harness.now += pulls.MAX_SECONDS
    harness.request("manifest", "12")
    assert harness.only.requests == 1
    assert [found.running for found in harness.pulls.running] == [1]


def test_other_clients_registries_and_repositories_are_other_pulls(harness: PullHarness) -> None:
    harness.request("manifest", "12")
    changes = {"client": "10.0.0.8", "registry": "ghcr.io", "repository": "a/b", "listener": Listener.PROXY}
    for name, value in changes.items():
        harness.end("manifest", "12", **{name: value})
    harness.quiet()
    assert len(harness.pulls.recent) == 5


def test_push_is_no_pull(harness: PullHarness) -> None:
    harness.request("blob", LAYER, Result.BYPASS, method="HEAD", status=404)
    harness.request("manifest", "12", Result.BYPASS, method="PUT", status=201)
    harness.quiet()
    assert (list(harness.pulls.recent), harness.counts, harness.pulls.running) == ([], [], [])


def test_signatures_and_referrers_are_counted_with_the_pull_and_are_none_alone(harness: PullHarness) -> None:
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
def test_paths_that_name_no_image_are_no_pull(harness: PullHarness, path: str) -> None:
    harness.pulls.begin(Request("GET", path, Registry.parse(HUB_HOST), Listener.MIRROR, {}, client=CLIENT))
    harness.end("other", "", repository="", status=400)
    assert harness.pulls._open == {}


def test_open_pulls_are_bounded(harness: PullHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "MAX_OPEN", 10)
    for number in range(30):
        harness.request("manifest", "1", repository=f"a/b{number}")
    assert (len(harness.pulls.running), len(harness.pulls.recent)) == (10, 20)
    assert harness.pulls.recent[0].image == "a/b0:1"


def test_only_the_newest_running_pulls_are_summarized(harness: PullHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A summary sorts the times of all requests: those of a thousand pulls would occupy the event loop."""
    monkeypatch.setattr(pulls, "MAX_RUNNING", 3)
    for number in range(10):
        harness.request("manifest", "1", repository=f"a/b{number}")
    assert [pull.image for pull in harness.pulls.running] == ["a/b7:1", "a/b8:1", "a/b9:1"]


def test_what_is_remembered_of_one_pull_is_bounded(harness: PullHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_pull, "_MAX_REFERENCES", 10)
    for number in range(1000):
        harness.request("manifest", f"t{number}")
        harness.request("manifest", f"f{number}", Result.ERROR, status=404)
    (found,) = harness.pulls._open.values()
    assert max(map(len, (found._tags, found._received, found._failures))) == 10
    assert len(found._times._spans) <= pull_times._MAX_SPANS
    assert harness.pulls.running[0].requests == 2000


async def test_pulls_end_by_themselves_and_at_the_close(harness: PullHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "_TICK_SECONDS", 0.001)
    harness.request("manifest", "12")
    harness.now += pulls.QUIET_SECONDS
    harness.pulls.start()
    await until(lambda: harness.pulls.recent)
    harness.request("manifest", "11")
    await harness.pulls.close()
    assert [found.image for found in harness.pulls.recent] == ["debian:12", "debian:11"]
