"""Blobs that a fleet shares: one fetch for all nodes; and what happens when the fetching node or the bucket fails."""

import asyncio
from pathlib import Path

import pytest
from hubcache.fleet import keys, shared_blobs
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, HubcacheError
from hubcache.transfer import fills as fills_module
from support.fleet_nodes import REPO, SharingFleet, SharingNode, settled
from support.standin import Fault, Hub, random_bytes
from support.users import until

LAYER = random_bytes(3_000_000, "layer")
DIGEST = Digest.of(LAYER)
KEY = keys.blob(DIGEST)


@pytest.fixture
def fleet(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharingFleet:
    """A fleet whose registry has one layer, with short pauses."""
    monkeypatch.setattr(fills_module, "_BACKOFF_SECONDS", 0.005)
    monkeypatch.setattr(shared_blobs, "_FIRST_PAUSE", 0.005)
    monkeypatch.setattr(shared_blobs, "_LONGEST_PAUSE", 0.02)
    hub.image(REPO, "1", [LAYER])
    return SharingFleet(hub, tmp_path, monkeypatch)


async def pull_all(nodes: list[SharingNode], clients: int = 1) -> None:
    """Pull the layer through all nodes at once, by several clients of each."""
    pulled = await asyncio.gather(*(node.pull(DIGEST) for node in nodes for _ in range(clients)))
    assert all(data == LAYER for data in pulled)


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


# -- the node that fetches fails ------------------------------------------------------------------------------------


async def begun(fleet: SharingFleet, holder: SharingNode, fault: Fault) -> asyncio.Task[bytes]:
    """Have a node fetch the layer from a registry that stops in the middle; return the pull of its client."""
    fleet.hub.faults.add(fault)
    pulling = asyncio.create_task(holder.pull(DIGEST))
    await until(lambda: (fill := holder.fills.get(DIGEST)) is not None and fill.written >= 1_000_000)
    return pulling


async def following(nodes: list[SharingNode]) -> list[asyncio.Task[bytes]]:
    """Have nodes receive the layer from the one that fetches it; return the pulls of their clients."""
    pulls = [asyncio.create_task(node.pull(DIGEST)) for node in nodes]
    await until(lambda: all(node.counts.received["peer"] >= 900_000 for node in nodes))
    return pulls


async def failure(pulling: asyncio.Task[bytes]) -> HubcacheError:
    with pytest.raises(HubcacheError) as caught:
        await pulling
    return caught.value


async def test_others_finish_when_the_process_that_fetches_dies(fleet: SharingFleet) -> None:
    async with fleet.nodes(4) as (holder, *others):
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        pulls = await following(others)
        await holder.vanish()
        await failure(pulling)
        fleet.hub.faults.remove(fault)
        await asyncio.sleep(0.05)
        assert not any(pull.done() for pull in pulls), "the lease of the dead node lives"
        fleet.expired.add(holder.name)
        assert [await pull for pull in pulls] == [LAYER] * 3
        ranges = [record.header("Range") for record in fleet.hub.requests(kind="cdn")][1:]
        assert len(ranges) == 1, "one node takes over"
        assert ranges[0] is not None
        assert int(ranges[0].removeprefix("bytes=").removesuffix("-")) >= 900_000, "where the bytes ended"


async def test_others_finish_when_the_fill_of_the_node_that_fetches_fails(fleet: SharingFleet) -> None:
    """The registry sends wrong bytes once."""
    async with fleet.nodes(3) as (holder, *others):
        fault = Fault(kind="cdn", pause_after=1_000_000, corrupt_at=2_900_000, times=1)
        pulling = await begun(fleet, holder, fault)
        pulls = await following(others)
        fleet.hub.faults.remove(fault)
        assert isinstance(await failure(pulling), BadUpstream)
        outcomes = await asyncio.gather(*pulls, return_exceptions=True)
        # Those that have received the wrong byte cannot finish this answer; no client gets it as a complete one.
        assert all(outcome == LAYER or isinstance(outcome, BadUpstream) for outcome in outcomes)
        await pull_all([holder, *others])
        assert fleet.fetched(DIGEST) <= 4


async def test_others_take_over_where_a_fill_broke_off(fleet: SharingFleet) -> None:
    async with fleet.nodes(3) as (holder, *others):
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        pulls = await following(others)
        pulling.cancel()
        fill = holder.fills.get(DIGEST)
        assert fill is not None
        holder.fills._cancel_fill(fill)
        assert [await pull for pull in pulls] == [LAYER] * 2
        fleet.hub.faults.remove(fault)
        ranges = [record.header("Range") for record in fleet.hub.requests(kind="cdn")]
        assert len(ranges) == 2
        assert ranges[1] is not None
        start = int(ranges[1].removeprefix("bytes=").removesuffix("-"))
        assert 900_000 <= start <= 1_000_000
