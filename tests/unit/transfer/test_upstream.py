"""Reads from a Docker Hub with faults: which responses are accepted, and which requests are retried."""

import asyncio
import gzip
import time
from dataclasses import replace

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, TooManyRequests, Unavailable
from hubcache.oci.media import OCI_MANIFEST
from support.standin import Fault, Hub
from support.upstream_reads import ACCEPT, DIGEST, LAYER, REPO, download_blob, read_blob, upstream_fixtures
from support.upstreams import UpstreamSetup

short_waits, line = upstream_fixtures()


async def test_manifest_has_its_exact_bytes_media_type_and_digest(hub: Hub, line: UpstreamSetup) -> None:
    image = hub.image(REPO, "stable", [LAYER])
    fetched = await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert (fetched.body, fetched.media_type, str(fetched.digest)) == (image.manifest, OCI_MANIFEST, image.digest)
    assert await line.upstream.get_manifest(REPO, fetched.digest, ACCEPT) == fetched


async def test_head_returns_digest_type_and_size_and_is_not_counted(hub: Hub, line: UpstreamSetup) -> None:
    hub.limit(remaining=5)
    head = await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    fetched = await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert (head.digest, head.media_type, head.size) == (fetched.digest, OCI_MANIFEST, len(fetched.body))
    assert line.seen.limits == [("anonymous", 100, 5), ("anonymous", 100, 4)]


async def test_blob_is_read_through_the_redirect(hub: Hub, line: UpstreamSetup) -> None:
    assert await read_blob(line) == await download_blob(line) == LAYER
    assert await line.upstream.head_blob(REPO, DIGEST) == len(LAYER)
    assert line.seen.received == 2 * len(LAYER)


@pytest.mark.parametrize(("start", "end"), [(100_000, None), (5, 6), (0, 100), (299_999, 300_000)])
async def test_range_of_a_blob_is_read(line: UpstreamSetup, start: int, end: int | None) -> None:
    async with line.upstream.open_blob(REPO, DIGEST, start, end) as body:
        assert (body.start, body.size) == (start, len(LAYER))
        assert b"".join([chunk async for chunk in body.chunks()]) == LAYER[start:end]


async def test_body_of_an_upstream_that_ignores_ranges_starts_at_zero(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="cdn", status=200, body=LAYER))
    async with line.upstream.open_blob(REPO, DIGEST, 100) as body:
        assert (body.start, body.size) == (0, len(LAYER))


@pytest.mark.parametrize(("times", "start"), [(1, 100), (2, 0)])
@pytest.mark.parametrize("wrong", [Fault(headers={"Content-Range": "bytes 7-299999/300000"}), Fault(status=416)])
async def test_wrong_range_is_requested_again_and_then_the_whole_blob(
    hub: Hub, line: UpstreamSetup, wrong: Fault, times: int, start: int
) -> None:
    hub.faults.add(replace(wrong, kind="cdn", times=times))
    async with line.upstream.open_blob(REPO, DIGEST, 100) as body:
        assert (body.start, body.size) == (start, len(LAYER))
        assert b"".join([chunk async for chunk in body.chunks()]) == LAYER[start:]


@pytest.mark.parametrize("answer", ["bytes 7-299999/300000", "bytes */300000", "", "lines 100-299999/300000"])
async def test_persistently_wrong_range_is_refused(hub: Hub, line: UpstreamSetup, answer: str) -> None:
    hub.faults.add(Fault(kind="cdn", status=206, body=LAYER, headers={"Content-Range": answer}))
    for read in (read_blob, download_blob):
        with pytest.raises(BadUpstream, match="another range"):
            await read(line, 100)
    assert [record.header("Range") for record in hub.requests(kind="cdn")] == ["bytes=100-", "bytes=100-", None] * 2


async def test_requests_accept_identity_only(hub: Hub, line: UpstreamSetup) -> None:
    await read_blob(line)
    await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert {record.header("Accept-Encoding") for record in hub.log} == {"identity"}


@pytest.mark.parametrize("start", [0, 100])
async def test_declared_coding_of_a_correct_blob_is_ignored(hub: Hub, line: UpstreamSetup, start: int) -> None:
    """Some servers declare gzip for layers, which are gzip files themselves."""
    hub.faults.add(Fault(kind="cdn", headers={"Content-Encoding": "gzip"}))
    assert await read_blob(line, start) == await download_blob(line, start) == LAYER[start:]


async def test_error_about_a_wrong_blob_names_its_declared_coding(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="cdn", headers={"Content-Encoding": "br"}))
    with pytest.raises(BadUpstream, match="encoded a body although identity"):
        async with line.upstream.open_blob(REPO, DIGEST):
            raise BadUpstream("content does not match its digest")


@pytest.mark.parametrize("by_digest", [True, False])
@pytest.mark.parametrize("is_encoded", [True, False])
@pytest.mark.parametrize("digest_is_told", [True, False])
async def test_manifest_declared_as_gzip_is_read_whether_encoded_or_not(
    hub: Hub, line: UpstreamSetup, by_digest: bool, is_encoded: bool, digest_is_told: bool
) -> None:
    image = hub.image(REPO, "stable", [LAYER])
    headers = {"Content-Encoding": "gzip"} | ({"Docker-Content-Digest": image.digest} if digest_is_told else {})
    body = gzip.compress(image.manifest) if is_encoded else image.manifest
    hub.faults.add(Fault(kind="manifest", status=200, body=body, content_type=OCI_MANIFEST, headers=headers))
    reference = Digest.parse(image.digest) if by_digest else "stable"
    fetched = await line.upstream.get_manifest(REPO, reference, ACCEPT)
    assert (str(fetched.digest), fetched.body) == (image.digest, image.manifest)


@pytest.mark.parametrize(
    ("body", "coding"),
    [(b"not gzip", "gzip"), (b"\x1f\x8bno", "gzip"), (b"anything", "br"), (gzip.compress(b" " * (5 << 20)), "gzip")],
    ids=["no gzip", "damaged", "brotli", "bomb"],
)
async def test_manifest_that_cannot_be_decoded_is_a_clear_error(
    hub: Hub, line: UpstreamSetup, body: bytes, coding: str
) -> None:
    hub.faults.add(Fault(kind="manifest", status=200, body=body, headers={"Content-Encoding": coding}))
    with pytest.raises(BadUpstream, match=r"encoded|declared gzip|too large"):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)


async def test_content_length_of_an_encoded_response_is_not_the_manifests_size(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="manifest", method="HEAD", headers={"Content-Encoding": "gzip"}))
    assert (await line.upstream.head_manifest(REPO, "stable", ACCEPT)).size is None


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=503, body="<html>"), Fault(reset=True)])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_quick_failure_is_retried(hub: Hub, line: UpstreamSetup, fault: Fault, method: str) -> None:
    hub.faults.add(replace(fault, kind="manifest", times=1))
    read = line.upstream.head_manifest if method == "HEAD" else line.upstream.get_manifest
    assert (await read(REPO, "stable", ACCEPT)).media_type == OCI_MANIFEST


async def test_retries_are_few_with_growing_delays(
    hub: Hub, line: UpstreamSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    fault = hub.faults.add(Fault(kind="manifest", status=500))
    with pytest.raises(Unavailable):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert 2 <= fault.hits <= 4
    waits = [seconds for seconds in slept if 0.0 < seconds < 1.0]
    assert len(waits) == fault.hits - 1
    assert waits == sorted(set(waits))


async def test_silent_registry_is_unavailable_after_the_time_out(hub: Hub, line: UpstreamSetup) -> None:
    fault = hub.faults.add(Fault(kind="manifest", blackhole=True))
    with pytest.raises(Unavailable, match="time-out"):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert 1 <= fault.hits <= 3


async def test_registry_that_does_not_accept_connections_is_unavailable_after_the_time_out(
    hub: Hub, line: UpstreamSetup
) -> None:
    hub.blackhole("registry")
    with pytest.raises(Unavailable, match="time-out of the connection"):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)


async def test_response_head_over_the_limit_is_unavailable(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="manifest", headers={"X-Book": "x" * 100_000}))
    with pytest.raises(Unavailable):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)


async def test_answers_carry_the_time_of_the_request(
    line: UpstreamSetup, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(1000, 1100, 10))
    monkeypatch.setattr(line.upstream, "_wall_clock", lambda: float(next(times)))
    head = await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    fetched = await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    async with line.upstream.open_blob(REPO, DIGEST) as body, line.upstream.download_blob(REPO, DIGEST) as download:
        found = [head.answered_at, fetched.answered_at, body.answered_at, download.answered_at]
    assert found == [1000.0, 1010.0, 1020.0, 1030.0]


async def test_pause_of_another_cache_stops_anonymous_requests_only(line: UpstreamSetup, hub: Hub) -> None:
    reader = (await line.upstream.anonymous_authorization(REPO)) or ""
    line.upstream.pause("manifest", 60.0)
    hub.reset_log()
    with pytest.raises(TooManyRequests):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert hub.count() == 0
    assert line.upstream.is_rate_limited("manifest", "")
    assert not line.upstream.is_rate_limited("manifest", reader)
    assert (await line.upstream.get_manifest(REPO, "stable", ACCEPT, reader)).body
    assert await read_blob(line) == LAYER


async def test_shorter_pause_of_another_cache_does_not_shorten_a_pause(
    line: UpstreamSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.upstream.pause("manifest", 60.0)
    line.upstream.pause("manifest", 1.0)
    started = time.monotonic()
    monkeypatch.setattr(line.upstream, "_clock", lambda: started + 50)
    assert line.upstream.is_rate_limited("manifest", "")


async def test_pause_is_reported_for_anonymous_requests_only(
    line: UpstreamSetup, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = (await line.upstream.anonymous_authorization(REPO)) or ""
    reported: list[tuple[str, float]] = []
    monkeypatch.setattr(line.upstream, "_anonymous_pause_began", lambda *pause: reported.append(pause))
    hub.faults.add(Fault(kind="manifest", status=429, headers={"Retry-After": "300"}))
    for authorization in (reader, None):
        with pytest.raises(TooManyRequests):
            await line.upstream.get_manifest(REPO, "stable", ACCEPT, authorization)
    assert reported == [("manifest", 300.0)]
