"""Objects with shared answers that are invalid, wrong, from the future or of a newer version; and their size."""

import json
import time

import pytest
from hubcache.fleet import keys
from hubcache.fleet.answer_records import ErrorAnswer, ManifestAnswer, TagAnswer, write_manifest, write_tag
from hubcache.fleet.values import encode_value
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ManifestUnknown
from support.shared_upstreams import (
    ACCEPT,
    HOST,
    REPO,
    TAG,
    SharedSetup,
    advance,
    get,
    head,
    manifest_requests,
    shared_upstream_fixtures,
)
from support.standin import Hub, Image

short_waits, nodes, image = shared_upstream_fixtures()


async def test_refusals_in_the_bucket_are_ignored(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    """Who writes them could choose the server to which clients send their passwords."""
    for code, method in (("UNAUTHORIZED", "GET"), ("DENIED", "HEAD")):
        refusal = {
            "error": code,
            "message": "no",
            "challenge": 'Bearer realm="https://evil.example/"',
            "at": time.time(),
        }
        answers = {keys.hashed(ACCEPT): {**refusal, "method": method, "upstream_code": "MANIFEST_UNKNOWN"}}
        await nodes[0].bucket.put(TAG, encode_value({"answers": answers}))
        assert await get(nodes[0]) == image.manifest
        await nodes[0].settle()


async def test_media_type_that_is_no_header_value_is_ignored(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    digest = Digest.parse(image.digest)
    tag = write_tag(TagAnswer(digest, "\u65e5", len(image.manifest), time.time()), "x")
    await nodes[0].bucket.put(TAG, encode_value({"answers": {keys.hashed(ACCEPT): tag}}))
    manifest = write_manifest(ManifestAnswer("\u65e5", image.manifest, time.time()), "x")
    await nodes[0].bucket.put(keys.manifest(HOST, REPO, digest), encode_value(manifest))
    for reference in ("1", digest):
        described = await nodes[0].upstream.head_manifest(REPO, reference, ACCEPT)
        assert described.media_type == image.media_type


@pytest.mark.parametrize("is_error", [False, True])
async def test_answer_from_the_future_is_replaced(
    hub: Hub, nodes: list[SharedSetup], image: Image, is_error: bool
) -> None:
    first, second = nodes
    digest, at = Digest.parse(image.digest), time.time() + 1e6
    missing = ErrorAnswer(ManifestUnknown("no", {"upstream_code": "MANIFEST_UNKNOWN"}), at)
    tag = write_tag(missing if is_error else TagAnswer(Digest.of(b"old"), image.media_type, 3, at), "x")
    future = {f"x{number}": tag for number in range(20)}
    await first.bucket.put(TAG, encode_value({"answers": {keys.hashed(ACCEPT): tag, **future}}))
    manifest = write_manifest(ManifestAnswer(image.media_type, image.manifest, at), "x")
    await first.bucket.put(keys.manifest(HOST, REPO, digest), encode_value(manifest))
    assert await get(first) == await get(first, digest) == image.manifest
    await first.settle()
    hub.reset_log()
    assert await get(second) == await get(second, digest) == image.manifest
    assert not any(manifest_requests(hub).values())


async def test_object_that_cannot_be_read_is_ignored_and_replaced(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    first, second = nodes
    digest = Digest.parse(image.digest)
    for value in (b"", b"[]", b"\xff", b'{"format": 2, "answers": 5}', b'{"format": 1, "answers": []}', b"[" * 5000):
        for key in (TAG, keys.manifest(HOST, REPO, digest)):
            await first.bucket.put(key, value)
        assert await get(first) == image.manifest
        await first.settle()
        hub.reset_log()
        assert await get(second) == await get(second, digest) == image.manifest
        assert not any(manifest_requests(hub).values()), value


async def test_field_that_is_invalid_voids_the_answer(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    await head(first)
    await first.settle()
    stored = await first.bucket.get(TAG)
    assert stored is not None
    invalid: list[tuple[str, object]] = [
        *(("digest", "sha256:1"), ("digest", 5), ("media_type", None), ("media_type", "a\r\nb: c"), ("size", -1)),
        *(("size", 1e300), ("size", "5"), ("at", None), ("at", "now"), ("at", 10**400), ("at", True), ("at", 1e999)),
    ]
    for name, value in invalid:
        document = json.loads(stored.value)
        for answer in document["answers"].values():
            answer[name] = value
        await first.bucket.put(TAG, json.dumps(document).encode())
        hub.reset_log()
        assert await head(second) == image.digest
        assert manifest_requests(hub) == {"HEAD": 1, "GET": 0}, (name, value)
        await second.settle()


async def test_answer_from_the_future_is_ignored(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    advance(nodes[:1], 3600)
    await head(nodes[0])
    await nodes[0].settle()
    await head(nodes[1])
    assert manifest_requests(hub) == {"HEAD": 2, "GET": 0}


async def test_bytes_that_do_not_match_the_digest_are_ignored_and_replaced(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    first, second = nodes
    digest, other = Digest.parse(image.digest), hub.image(REPO, "2", [b"other"])
    await get(first, Digest.parse(other.digest))
    await get(first)
    await first.settle()
    wrong = await first.bucket.get(keys.manifest(HOST, REPO, Digest.parse(other.digest)))
    assert wrong is not None
    await first.bucket.put(keys.manifest(HOST, REPO, digest), wrong.value)
    hub.reset_log()
    assert await get(second) == image.manifest
    await second.settle()
    assert await get(first) == await get(first, digest) == image.manifest
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}


async def test_unknown_fields_are_ignored(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    await get(first)
    await first.settle()
    for key in (TAG, keys.manifest(HOST, REPO, Digest.parse(image.digest))):
        stored = await first.bucket.get(key)
        assert stored is not None
        await first.bucket.put(key, json.dumps({**json.loads(stored.value), "new": {"field": 1}}).encode())
    assert await get(second) == image.manifest
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}


async def test_tag_object_keeps_a_bounded_number_of_answers(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    for number in range(40):
        await nodes[0].upstream.head_manifest(REPO, "1", f"{image.media_type}, text/x{number}")
        await nodes[0].settle()
        advance(nodes, 1)
    stored = await nodes[0].bucket.get(TAG)
    assert stored is not None
    assert len(json.loads(stored.value)["answers"]) == 16
    hub.reset_log()
    await nodes[1].upstream.head_manifest(REPO, "1", f"{image.media_type}, text/x39")
    assert not any(manifest_requests(hub).values())
