"""Reads from a Docker Hub with faults: which responses are refused, and the errors of refused requests."""

import json
from dataclasses import replace

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    ManifestUnknown,
    RegistryError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from hubcache.oci.manifest import MAX_MANIFEST
from support.standin import Fault, Hub
from support.upstream_reads import ACCEPT, DIGEST, LAYER, REPO, read_blob, upstream_fixtures
from support.upstreams import UpstreamSetup

short_waits, line = upstream_fixtures()


async def test_manifest_that_does_not_match_its_digest_is_refused(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="manifest", corrupt_at=10))
    known = Digest.parse(hub.image(REPO, "stable", [LAYER]).digest)
    for reference in ("stable", known):
        with pytest.raises(BadUpstream, match="does not match"):
            await line.upstream.get_manifest(REPO, reference, ACCEPT)


async def test_manifest_over_the_limit_is_refused(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="manifest", status=200, body=b" " * (MAX_MANIFEST + 1)))
    with pytest.raises(BadUpstream, match="too large"):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)


@pytest.mark.parametrize("value", ["sha256:abc", "md5:" + "0" * 32, ""])
async def test_malformed_digest_header_is_refused(hub: Hub, line: UpstreamSetup, value: str) -> None:
    hub.faults.add(Fault(kind="manifest", headers={"Docker-Content-Digest": value}))
    with pytest.raises(BadUpstream, match="Docker-Content-Digest"):
        await line.upstream.head_manifest(REPO, "stable", ACCEPT)


async def test_html_page_in_place_of_a_manifest_is_refused(hub: Hub, line: UpstreamSetup) -> None:
    known = Digest.parse(hub.image(REPO, "stable", [LAYER]).digest)
    hub.faults.add(Fault(kind="manifest", status=200, body="<html>please log in</html>"))
    with pytest.raises(BadUpstream):
        await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    with pytest.raises(BadUpstream):
        await line.upstream.get_manifest(REPO, known, ACCEPT)


async def test_truncated_manifest_is_unavailable(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="manifest", close_after=20))
    with pytest.raises(Unavailable):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)


@pytest.mark.parametrize(
    "fault",
    [Fault(kind="cdn", close_after=1000), Fault(kind="cdn", length=400_000), Fault(kind="cdn", pause_after=1000),
     Fault(kind="cdn", chunked=True, close_after=1000)],
)  # fmt: skip
async def test_blob_transfer_that_breaks_off_or_stalls_is_unavailable(
    hub: Hub, line: UpstreamSetup, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "is_silent", fault.pause_after)
    hub.faults.add(replace(fault))
    arrived: list[bytes] = []

    async def read() -> None:
        async with line.upstream.open_blob(REPO, DIGEST) as body:
            arrived.extend([chunk async for chunk in body.chunks()])

    with pytest.raises(Unavailable, match="broke off"):
        await read()
    assert LAYER.startswith(b"".join(arrived))


async def test_blob_without_content_length_has_no_size(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="cdn", chunked=True))
    async with line.upstream.open_blob(REPO, DIGEST) as body:
        assert body.size is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, BadUpstream), (403, Denied), (404, ManifestUnknown), (418, BadUpstream), (204, BadUpstream),
     (304, BadUpstream), (500, Unavailable), (503, Unavailable)],
)  # fmt: skip
async def test_each_status_becomes_its_error(
    hub: Hub, line: UpstreamSetup, status: int, expected: type[RegistryError]
) -> None:
    hub.faults.add(Fault(kind="manifest", status=status, body="<html>"))
    with pytest.raises(expected) as caught:
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert json.loads(caught.value.body())["errors"][0]["code"]


async def test_registrys_404_for_a_blob_is_blob_unknown(hub: Hub, line: UpstreamSetup) -> None:
    with pytest.raises(BlobUnknown):
        await line.upstream.head_blob(REPO, Digest.of(b"nowhere"))


async def test_upstreams_own_message_is_in_the_detail(hub: Hub, line: UpstreamSetup) -> None:
    body = {"errors": [{"code": "DENIED", "message": "billing is overdue"}]}
    hub.faults.add(Fault(kind="manifest", status=403, body=body))
    with pytest.raises(Denied) as caught:
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert caught.value.detail == {
        "repository": REPO,
        "upstream_status": 403,
        "upstream_code": "DENIED",
        "upstream_message": "billing is overdue",
    }


@pytest.mark.parametrize("after", ["17", None])
async def test_rate_limit_is_reported_and_no_further_request_sent(
    hub: Hub, line: UpstreamSetup, after: str | None
) -> None:
    headers = {"Retry-After": after} if after else {}
    fault = hub.faults.add(Fault(kind="manifest", status=429, body="Too Many Requests", headers=headers))
    for _ in range(5):
        with pytest.raises(TooManyRequests) as caught:
            await line.upstream.get_manifest(REPO, "stable", ACCEPT)
        assert caught.value.retry_after is None or after is None or 16 < caught.value.retry_after <= 17
    assert fault.hits == 1
    assert await read_blob(line) == LAYER


async def test_private_repository_is_unauthorized_with_the_registrys_challenge(hub: Hub, line: UpstreamSetup) -> None:
    hub.private(REPO, {"alice": "secret"})
    with pytest.raises(Unauthorized) as caught:
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert hub.realm in caught.value.challenge
    assert hub.count(kind="manifest") <= 2
    assert hub.count(kind="token") == 1


async def test_registry_that_always_answers_401_gets_at_most_two_tokens(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="manifest", status=401))
    for _ in range(2):
        hub.reset_log()
        with pytest.raises(Unauthorized):
            await line.upstream.get_manifest(REPO, "stable", ACCEPT)
        assert hub.count(kind="manifest") == 3
        assert hub.count(kind="token") <= 2
