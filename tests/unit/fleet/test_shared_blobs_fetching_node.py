"""Shared blobs when the node that fetches one dies, fails, stalls or cannot be reached."""

import asyncio

import pytest
from hubcache.fleet import peer_transfer, shared_fill
from hubcache.oci.errors import BadUpstream, HubcacheError
from support.fleet_nodes import SharingFleet, SharingNode, settled
from support.shared_layers import DIGEST, LAYER, pull_all, resumed_at, sharing_fleet_fixture
from support.standin import Fault
from support.users import until

fleet = sharing_fleet_fixture()


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


def count_calls(monkeypatch: pytest.MonkeyPatch, node: SharingNode, name: str) -> list[None]:
    """Return a list that grows with each call of a method of the node's `BlobsFromPeers`."""
    calls: list[None] = []
    method = getattr(node.shared._from_peers, name)

    def count(*arguments: object) -> object:
        calls.append(None)
        return method(*arguments)

    monkeypatch.setattr(node.shared._from_peers, name, count)
    return calls


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
        assert resumed_at(fleet) >= 900_000, "one node takes over, where the bytes ended"


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
        assert 900_000 <= resumed_at(fleet) <= 1_000_000


async def test_stalled_node_is_waited_for_while_its_lease_is_renewed(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(2) as (holder, other):
        monkeypatch.setattr(other.peers._downloads, "_progress_seconds", 0.05)
        asked = count_calls(monkeypatch, other, "_is_renewed")
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        (pull,) = await following([other])
        await until(lambda: len(asked) >= 3)
        assert not pull.done()
        fleet.hub.faults.remove(fault)
        assert await pull == LAYER
        assert await pulling == LAYER
        assert fleet.fetched(DIGEST) == 1


async def test_stalled_node_is_replaced_when_its_lease_expires(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(3) as (holder, *others):
        for other in others:
            monkeypatch.setattr(other.peers._downloads, "_progress_seconds", 0.05)
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        pulls = await following(others)
        fleet.expired.add(holder.name)
        assert [await pull for pull in pulls] == [LAYER] * 2
        assert fleet.fetched(DIGEST) == 2
        assert resumed_at(fleet) >= 900_000
        fleet.hub.faults.remove(fault)
        assert await pulling == LAYER


async def test_patience_with_a_stalled_node_ends(fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_transfer, "STALL_SECONDS", 10.0)
    async with fleet.nodes(2) as (holder, other):
        monkeypatch.setattr(other.peers._downloads, "_progress_seconds", 0.05)
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        assert await other.pull(DIGEST) == LAYER
        assert not pulling.done()
        assert fleet.fetched(DIGEST) == 2
        fleet.hub.faults.remove(fault)
        assert await pulling == LAYER


async def test_node_that_cannot_reach_the_one_that_fetches_waits_for_the_bucket(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as (holder, other):
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        await holder.server.close()
        pull = asyncio.create_task(other.pull(DIGEST))
        await until(lambda: other.counts.requests.get("get", {}).get("absent", 0) >= 3)
        fleet.hub.faults.remove(fault)
        assert await pull == LAYER
        assert await pulling == LAYER
        assert fleet.fetched(DIGEST) == 1
        assert other.counts.received == {"bucket": len(LAYER)}


async def test_node_that_cannot_reach_the_one_that_fetches_asks_the_registry_after_a_while(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    async with fleet.nodes(2) as (holder, other):
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        await holder.server.close()
        assert await other.pull(DIGEST) == LAYER
        fleet.hub.faults.remove(fault)
        assert await pulling == LAYER
        await settled(holder, other)
        assert fleet.fetched(DIGEST) == 2
        uploads = [node.counts.uploads["stored"] for node in (holder, other)]
        assert uploads in ([0, 1], [1, 0], [1, 1]), "without a lease, the bucket is looked at before the upload"
