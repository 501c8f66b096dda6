"""Blobs that a fleet shares: one fetch for all nodes, also of blobs that a node does not store."""

import pytest
from hubcache.fleet import keys
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, BlobUnknown
from support.fleet_nodes import REPO, SharingFleet, drained, settled
from support.shared_layers import DIGEST, KEY, LAYER, pull_all, resumed_at, sharing_fleet_fixture
from support.users import until

fleet = sharing_fleet_fixture()


async def test_new_blob_is_fetched_once_for_all_clients_of_all_nodes(fleet: SharingFleet) -> None:
    async with fleet.nodes(4) as nodes:
        await pull_all(nodes, clients=6)
        await settled(*nodes)
        assert all(node.store.has(DIGEST) for node in nodes)
        assert fleet.fetched(DIGEST) == 1
        assert sum(node.line.seen.received for node in nodes) == len(LAYER)
        assert sum(node.counts.uploads["stored"] for node in nodes) == 1
        assert sum(sum(node.counts.received.values()) for node in nodes) == 3 * len(LAYER)
        assert sum(node.counts.received["peer"] for node in nodes) > 0
    assert await fleet.object(KEY) == LAYER
    assert await fleet.keys("lease") == []


async def test_blob_in_the_bucket_is_not_fetched(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as (first, second):
        assert await first.pull(DIGEST) == LAYER
        await settled(first)
        before = second.counts.requests.copy()
        assert before == {}
        fill = second.start(DIGEST)
        assert await second.pull(DIGEST) == LAYER
        assert fill.answered_at is None, "the registry was not asked"
        await fill.wait_stored()
        assert second.counts.requests == {"get": {"ok": 1}}
        assert second.counts.received == {"bucket": len(LAYER)}
        assert second.counts.uploads == {}
        assert fleet.fetched(DIGEST) == 1
        assert second.line.seen.received == 0


async def test_small_blobs_are_shared(fleet: SharingFleet) -> None:
    for content in (b"", b"x"):
        digest = Digest.of(content)
        fleet.hub.image(REPO, "small", [content])
        async with fleet.nodes(2) as nodes:
            for node in nodes:
                assert await node.pull(digest) == content
                await settled(node)
        assert fleet.fetched(digest) == 1
        assert await fleet.object(keys.blob(digest)) == content


async def test_refusal_of_the_registry_is_passed_on(fleet: SharingFleet) -> None:
    unknown = Digest.of(b"unknown")
    async with fleet.nodes(2) as nodes:
        for node in nodes:
            with pytest.raises(BlobUnknown):
                await node.pull(unknown)
            await node.shared.close()
        assert await fleet.keys("lease") == []


async def test_blob_that_is_not_stored_comes_from_the_bucket(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        assert await drained(node.stream(DIGEST, 0, len(LAYER))) == LAYER
        assert fleet.fetched(DIGEST) == 0
        assert node.counts.received == {"bucket": len(LAYER)}
        assert await fleet.keys("lease") == []


@pytest.mark.parametrize("has_link", [True, False])
async def test_part_that_is_not_stored_comes_from_the_registry(fleet: SharingFleet, has_link: bool) -> None:
    """The digest verifies whole blobs only, and anyone who can write the bucket could change the bytes."""
    await fleet.bucket.put(KEY, b"E" * len(LAYER))
    async with fleet.node("a") as node:
        if has_link:
            await node.store.links.put(node.line.upstream.registry.host, REPO, {DIGEST: len(LAYER)})
        parts = ((0, 100), (0, len(LAYER) - 1), (1_000, 2_000_000), (5, 6), (5, len(LAYER)))
        for start, end in parts:
            assert await drained(node.stream(DIGEST, start, end)) == LAYER[start:end]
        assert fleet.fetched(DIGEST) == len(parts)
        assert node.counts.received == {}


async def test_blob_that_is_not_stored_comes_from_the_registry_where_the_bucket_lacks_it(fleet: SharingFleet) -> None:
    async with fleet.node("a") as node:
        assert await drained(node.stream(DIGEST, 0, len(LAYER))) == LAYER
        assert fleet.fetched(DIGEST) == 1
        assert await fleet.keys("") == [], "nothing is uploaded"


async def test_registry_sends_the_rest_when_the_bucket_breaks_off(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        node.bucket.break_after = 1_500_000
        assert await drained(node.stream(DIGEST, 0, len(LAYER))) == LAYER
        assert resumed_at(fleet, 0) == 1_500_000


@pytest.mark.parametrize("break_after", [None, 1_500_000])
async def test_wrong_bytes_that_are_not_stored_are_deleted_from_the_bucket(
    fleet: SharingFleet, break_after: int | None
) -> None:
    """No reader gets all of them, whether it verifies the digest itself or not."""
    await fleet.bucket.put(KEY, b"?" + LAYER[1:])
    async with fleet.node("a") as node:
        node.bucket.break_after = break_after
        source = node.stream(DIGEST, 0, len(LAYER))
        with pytest.raises(BadUpstream, match="digest"):
            await drained(source)
        assert not source.finished
        await until(lambda: not node.shared._objects._deletions)
        assert await fleet.keys("blob") == []
        assert await drained(node.stream(DIGEST, 0, len(LAYER))) == LAYER
