"""Shared blobs that the admission policy of a node refuses to store."""

import asyncio

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored
from hubcache.store.staging import Staged
from support.fleet_nodes import REPO, SharingFleet, SharingNode, drained, settled
from support.shared_layers import DIGEST, KEY, LAYER, sharing_fleet_fixture
from support.standin import Fault, random_bytes
from support.users import until

fleet = sharing_fleet_fixture()


def refuse_all(node: SharingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a node store only what is held."""
    stage = node.store.stage

    async def stage_held(digest: Digest, size: int) -> Staged:
        if digest not in node.store.usage.held:
            raise NotStored("not stored: not requested often enough")
        return await stage(digest, size)

    monkeypatch.setattr(node.store, "stage", stage_held)


async def stream_whole(node: SharingNode) -> bytes:
    """Read the layer as a client whose fill was refused."""
    host = node.line.upstream.registry.host
    await node.store.links.put(host, REPO, {DIGEST: len(LAYER)})
    with pytest.raises(NotStored):
        await node.start(DIGEST, size=len(LAYER)).wait_opened()
    return await drained(node.stream(DIGEST, 0, len(LAYER)))


async def test_blob_that_no_node_wants_to_store_is_fetched_once(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(3) as nodes:
        for node in nodes:
            refuse_all(node, monkeypatch)
        assert await asyncio.gather(*(stream_whole(node) for node in nodes)) == [LAYER] * 3
        await settled(*nodes)
        assert fleet.fetched(DIGEST) == 1
        assert await fleet.object(KEY) == LAYER
        assert all(node.store.usage.held == {} for node in nodes), "it may be evicted now"
        late = nodes[0]
        await late.store.remove(DIGEST)
        assert await stream_whole(late) == LAYER
        assert fleet.fetched(DIGEST) == 1


async def test_refused_blobs_that_wait_for_their_upload_take_a_fourth_of_the_store(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They must not evict what clients request often while the bucket is slow."""
    layers = [random_bytes(1_000_000, f"refused {number}") for number in range(4)]
    digests = [Digest.of(layer) for layer in layers]
    fleet.hub.image(REPO, "refused", layers)
    async with fleet.node("a") as node:
        refuse_all(node, monkeypatch)
        node.store.capacity.max_bytes = 8_000_000
        gate = asyncio.Event()

        async def take(size: int) -> bool:
            return await gate.wait()

        monkeypatch.setattr(node.room, "take", take)
        await node.store.links.put(node.line.upstream.registry.host, REPO, dict.fromkeys(digests, 1_000_000))
        for digest, layer in zip(digests, layers, strict=True):
            assert await drained(node.stream(digest, 0, len(layer))) == layer
            await until(lambda: not node.fills._tasks)
        assert [*node.store.usage.held] == digests[:2]
        assert [node.store.has(digest) for digest in digests] == [True, True, False, False]
        gate.set()
        await settled(node)
        assert node.store.usage.held == {}
        assert await drained(node.stream(digests[2], 0, len(layers[2]))) == layers[2]
        await settled(node)
        assert node.store.has(digests[2])


@pytest.mark.parametrize("reason", ["size", "bucket", "damage", "slots"])
async def test_blob_is_streamed_where_it_cannot_be_held(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    async with fleet.node("a") as node:
        refuse_all(node, monkeypatch)
        match reason:
            case "size":
                node.store.capacity.max_blob = len(LAYER) - 1
            case "bucket":
                node.bucket.is_down = True
            case "damage":
                node.store.index.problems["files"] = "the disk is full"
            case "slots":
                monkeypatch.setattr(node.fills._slots, "_most", 0)
                await node.store.links.put(node.line.upstream.registry.host, REPO, {DIGEST: len(LAYER)})
        async with asyncio.timeout(5):
            streaming = stream_whole(node) if reason != "slots" else drained(node.stream(DIGEST, 0, len(LAYER)))
            assert await streaming == LAYER
        await settled(node)
        assert fleet.fetched(DIGEST) == 1
        assert not node.store.has(DIGEST)
        assert node.store.usage.held == {}


async def test_client_that_leaves_ends_the_fill_of_a_refused_blob(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.node("a") as node:
        refuse_all(node, monkeypatch)
        await node.store.links.put(node.line.upstream.registry.host, REPO, {DIGEST: len(LAYER)})
        fault = fleet.hub.faults.add(Fault(kind="cdn", pause_after=1_000_000, times=1))
        source = node.stream(DIGEST, 0, len(LAYER))
        assert await source.read()
        await source.close()
        node.fills.cancel_unread()
        fill = node.fills.get(DIGEST)
        if fill is not None:
            node.fills._cancel_fill(fill)
        await settled(node)
        assert node.store.usage.held == {}
        fleet.hub.faults.remove(fault)
