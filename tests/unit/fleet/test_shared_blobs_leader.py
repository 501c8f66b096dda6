"""Shared blobs from the node that has fetched the manifest: what it saves, and what happens when it has no bytes."""

import asyncio
import socket

import pytest
from hubcache.fleet import blobs_from_peers, peer_client, peer_server
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored
from hubcache.transfer.fill_slots import PREFETCH
from support.fleet import TestNode
from support.fleet_nodes import REPO, SharingFleet, SharingNode, settled
from support.shared_layers import DIGEST, KEY, LAYER, hold_lease, pull_all, sharing_fleet_fixture
from support.standin import Fault
from support.users import bearer, until

HOST = "registry-1.docker.io"
fleet = sharing_fleet_fixture()


def follow(leader: SharingNode | TestNode, *followers: SharingNode) -> None:
    """Have nodes know which node has fetched the manifest."""
    for each in followers:
        each.leaders.record(HOST, REPO, leader.name if isinstance(leader, SharingNode) else leader.id, age=0.0)


def requests(node: SharingNode) -> int:
    """Return the number of requests of a node to the bucket."""
    return sum(outcomes.total() for outcomes in node.counts.requests.values())


async def test_followers_send_no_request_to_the_bucket(fleet: SharingFleet) -> None:
    async with fleet.nodes(4) as nodes:
        follow(nodes[0], *nodes)
        await pull_all(nodes, clients=2)
        await settled(*nodes)
        assert fleet.fetched(DIGEST) == 1
        assert await fleet.keys("blob") == [KEY]
        assert [requests(node) for node in nodes[1:]] == [0, 0, 0]
        assert [node.counts.received["peer"] for node in nodes] == [0, *[len(LAYER)] * 3]


async def test_leader_begins_a_fill_for_its_follower(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as (leader, follower):
        follow(leader, follower)
        await pull_all([follower])
        await settled(leader, follower)
        assert leader.store.has(DIGEST)
        assert requests(follower) == 0
        assert await fleet.keys("blob") == [KEY]
        await leader.leases._retired.delete_all()
        assert await fleet.keys("lease") == []


@pytest.mark.parametrize("repository", ["library/other", REPO])
async def test_leader_begins_no_fill_of_what_it_does_not_know_as_public(fleet: SharingFleet, repository: str) -> None:
    async with fleet.nodes(2) as (leader, follower):
        leader.permitted = False
        follower.leaders.record(HOST, repository, leader.name, age=0.0)
        await pull_all([follower])
        await settled(leader, follower)
        assert not leader.store.has(DIGEST)
        assert leader.checks == []
        assert fleet.fetched(DIGEST) == 1


async def test_leader_that_has_no_free_slot_begins_no_fill(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(2) as (leader, follower):
        follow(leader, follower)
        monkeypatch.setattr(leader.fills, "has_free_slot", lambda requester: requester != PREFETCH)
        await pull_all([follower])
        await settled(leader, follower)
        assert not leader.store.has(DIGEST)
        assert fleet.fetched(DIGEST) == 1


async def test_leader_whose_policy_refuses_the_blob_sends_nothing(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise NotStored("not admitted")

    async with fleet.nodes(2) as (leader, follower):
        follow(leader, follower)
        monkeypatch.setattr(leader, "begin", refuse)
        await pull_all([follower])
        assert leader.shared._shared == {}
        assert await leader.pull(DIGEST) == LAYER
        await settled(leader, follower)
        assert fleet.fetched(DIGEST) == 1


async def test_leader_that_stops_begins_no_fill(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as (leader, follower):
        follow(leader, follower)
        leader.shared.for_peers.is_stopping = True
        await pull_all([follower])
        await settled(leader, follower)
        assert not leader.store.has(DIGEST)
        assert fleet.fetched(DIGEST) == 1


async def test_leader_begins_no_fill_of_a_private_blob(fleet: SharingFleet) -> None:
    async with fleet.node("leader") as leader:
        await leader.store.private.add(DIGEST)
        await leader.shared.for_peers.begin(HOST, REPO, DIGEST)
        assert leader.fills.get(DIGEST) is None


async def test_leader_does_not_share_a_fill_that_is_not_shared(fleet: SharingFleet) -> None:
    fleet.hub.faults.add(Fault(kind="cdn", pause_after=10_000))
    async with fleet.node("leader") as leader:
        fill = leader.start(DIGEST, bearer(fleet.hub, "alice", REPO))
        await until(lambda: fill.written > 0)
        await leader.shared.for_peers.begin(HOST, REPO, DIGEST)
        assert leader.shared._shared == {}
        leader.fills._cancel_fill(fill)


async def test_two_nodes_that_take_each_other_for_the_leader_do_not_wait(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_from_peers, "_ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(peer_server, "LEADER_SECONDS", 60.0)
    monkeypatch.setattr(peer_client, "STALL_SECONDS", 60.0)
    async with asyncio.timeout(20), fleet.nodes(3) as nodes:
        for number, node in enumerate(nodes):
            follow(nodes[number - 1], node)
        await pull_all(nodes, clients=2)
        await settled(*nodes)
    assert fleet.fetched(DIGEST) == 1


async def test_node_whose_follower_is_its_leader_fetches_itself(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as (first, second):
        follow(first, second)
        follow(second, first)
        await pull_all([first])
        await settled(first, second)
        assert second.store.has(DIGEST)
        assert fleet.fetched(DIGEST) == 1


async def test_fill_for_a_follower_asks_no_leader(fleet: SharingFleet) -> None:
    async with fleet.nodes(3) as (first, second, third):
        follow(first, second)
        follow(second, third)
        await pull_all([third])
        await settled(first, second, third)
        assert [node.store.has(DIGEST) for node in (first, second, third)] == [False, True, True]


async def test_leader_that_does_not_run_is_asked_once(fleet: SharingFleet) -> None:
    gone = TestNode("gone")
    fleet.members.append(gone)
    fleet.hub.image(REPO, "2", [b"second layer"])
    async with fleet.nodes(1) as (node,):
        follow(gone, node)
        await pull_all([node])
        assert node.leaders.find(HOST, REPO) is None
        assert await node.pull(Digest.of(b"second layer")) == b"second layer"


async def test_leader_that_does_not_answer_in_time_is_avoided(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_from_peers, "_ANSWER_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = TestNode("hangs", f"http://127.0.0.1:{silent.getsockname()[1]}")
        fleet.members.append(hanging)
        async with fleet.nodes(1) as (node,):
            follow(hanging, node)
            await pull_all([node])
            assert node.leaders.find(HOST, REPO) is None


async def test_follower_goes_on_while_the_registry_is_slow(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_server, "LEADER_SECONDS", 0.05)
    fleet.hub.faults.add(Fault(kind="cdn", delay=0.5))
    async with fleet.nodes(2) as (leader, follower):
        follow(leader, follower)
        pulling = asyncio.create_task(pull_all([follower]))
        await until(lambda: requests(follower) > 0)
        assert follower.leaders.find(HOST, REPO) is not None, "the leader did answer"
        await pulling
        await settled(leader, follower)
    assert fleet.fetched(DIGEST) == 1


async def test_leader_that_sends_many_bodies_sends_no_more_as_leader(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(3) as (leader, other, follower):
        await pull_all([leader])
        await settled(leader)
        monkeypatch.setattr(peer_server, "_MAX_FOLLOWERS", 0)
        follow(leader, follower)
        await pull_all([follower])
        assert follower.counts.received["bucket"] == len(LAYER)
        monkeypatch.setattr(peer_server, "_MAX_FOLLOWERS", 1)
        follow(leader, other)
        await pull_all([other])
        assert other.counts.received["peer"] == len(LAYER)
        assert leader.server._followers == 0


async def test_holder_of_the_lease_is_asked_where_the_leader_has_no_bytes(fleet: SharingFleet) -> None:
    async with fleet.nodes(3) as (leader, holder, follower):
        leader.permitted = False
        follow(leader, follower)
        await hold_lease(fleet, DIGEST, holder.address)
        await holder.fills.start(DIGEST, None, holder.read(DIGEST).download).wait_stored()
        await pull_all([follower])
        assert follower.counts.received["peer"] == len(LAYER)


async def test_node_asks_a_leader_whose_body_broke_off_as_holder_of_the_lease_alone(fleet: SharingFleet) -> None:
    fleet.hub.faults.add(Fault(kind="cdn", pause_after=2 << 20, times=1))
    async with fleet.nodes(2) as (leader, follower):
        follow(leader, follower)
        pulling = asyncio.create_task(pull_all([follower]))
        await until(lambda: follower.counts.received["peer"] > 0)
        fleet.expired.add(leader.name)
        await leader.vanish()
        await pulling
        await settled(follower)
        assert follower.store.has(DIGEST)


async def test_private_blob_is_not_asked_of_a_leader(fleet: SharingFleet) -> None:
    async with fleet.nodes(2, shares_private=True) as (leader, follower):
        await pull_all([leader])
        await settled(leader)
        fleet.hub.private(REPO, {"alice": "alice's"})
        follow(leader, follower)
        assert await follower.pull(DIGEST, bearer(fleet.hub, "alice", REPO)) == LAYER
        await settled(leader, follower)
        assert follower.counts.received == {}
