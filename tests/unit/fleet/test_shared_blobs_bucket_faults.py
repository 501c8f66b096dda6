"""Shared blobs when the bucket fails, or has wrong bytes."""

import asyncio

import pytest
from hubcache.fleet import bucket, shared_fill
from hubcache.fleet.bucket import BucketUnavailable
from hubcache.oci.errors import BadUpstream
from support.fleet_nodes import REPO, SharingFleet, drained, settled
from support.shared_layers import DIGEST, KEY, LAYER, pull_all, resumed_at, sharing_fleet_fixture
from support.users import until

fleet = sharing_fleet_fixture()


async def test_object_with_wrong_bytes_is_replaced(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER[:-1_000] + bytes(1_000))
    async with fleet.nodes(2) as (first, second):
        fill = first.start(DIGEST)
        with fill.reading():
            size = await fill.wait_opened()
            source = first.follow(fill, size)
        with pytest.raises(BadUpstream):
            await drained(source)
        assert source.at < size, "no client gets wrong bytes as a complete body"
        await until(lambda: not first.shared._objects._deletions)
        assert await fleet.object(KEY) is None, "it is not tried again and again"
        assert await first.pull(DIGEST) == LAYER
        await settled(first)
        assert await fleet.object(KEY) == LAYER
        assert await second.pull(DIGEST) == LAYER
        assert fleet.fetched(DIGEST) == 1


async def test_object_with_wrong_bytes_that_cannot_be_deleted_is_not_used_again(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = LAYER[:-1] + b"?"
    await fleet.bucket.put(KEY, wrong)

    async def fail(*_: object) -> None:
        raise BucketUnavailable("down")

    async with fleet.node("a") as node:
        monkeypatch.setattr(node.bucket, "delete", fail)
        with pytest.raises(BadUpstream):
            await node.pull(DIGEST)
        assert await node.pull(DIGEST) == LAYER
        await settled(node)
        assert await fleet.object(KEY) == LAYER, "it is replaced"


@pytest.mark.parametrize("wrong", [LAYER[:-1], LAYER + b"?", b""])
async def test_object_of_wrong_length_is_replaced(fleet: SharingFleet, wrong: bytes) -> None:
    await fleet.bucket.put(KEY, wrong)
    async with fleet.node("a") as node:
        host = node.line.upstream.registry.host
        await node.store.links.put(host, REPO, {DIGEST: len(LAYER)})
        assert await node.pull(DIGEST) == LAYER
        await settled(node)
    assert fleet.fetched(DIGEST) == 1
    assert await fleet.object(KEY) == LAYER


async def test_correct_object_is_kept_when_a_manifest_states_a_wrong_size(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        host = node.line.upstream.registry.host
        await node.store.links.put(host, REPO, {DIGEST: 5})
        fill = node.start(DIGEST, size=5)
        with pytest.raises(BadUpstream):
            await fill.wait_stored()
        await settled(node)
    assert await fleet.object(KEY) == LAYER


@pytest.mark.parametrize("after", [500_000, 2_000_000])
async def test_body_from_the_bucket_that_breaks_off_is_resumed(fleet: SharingFleet, after: int) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        node.bucket.break_after = after
        assert await node.pull(DIGEST) == LAYER
        await settled(node)
        assert node.counts.uploads == {}, "the bucket has it"
        from_bucket = node.counts.received["bucket"]
    if after > shared_fill.PROGRESS_BYTES:
        assert (from_bucket, fleet.fetched(DIGEST)) == (len(LAYER), 0)
    else:
        assert (from_bucket, resumed_at(fleet, 0)) == (after, after)


async def test_bucket_that_is_down_is_not_waited_for(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as nodes:
        for node in nodes:
            node.bucket.is_down = True
        await pull_all(nodes)
        assert all(node.counts.requests == {} or "error" in node.counts.requests["get"] for node in nodes)
        for node in nodes:
            node.bucket.is_down = False
        await settled(*nodes)
    assert await fleet.object(KEY) == LAYER


async def test_slow_bucket_is_not_waited_for(fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.05)
    async with fleet.node("a") as node:

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(node.bucket, "open", hang)
            assert await node.pull(DIGEST) == LAYER
            await settled(node)
