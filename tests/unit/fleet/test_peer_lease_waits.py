"""Waits of one node until another has released a lease."""

import asyncio

import pytest
from hubcache.fleet import peer_server
from hubcache.fleet.peer_client import PeerClient, PeerUnavailable
from support.peers import Node, peer_fixtures
from support.users import until

node, client = peer_fixtures()


async def test_release_of_a_lease_is_waited_for(client: PeerClient, node: Node) -> None:
    node.leases.released["tag/1"] = asyncio.Event()
    waiting = asyncio.create_task(client.wait_released(node.address, "tag/1"))
    await until(lambda: node.server._waiting == 1)
    assert not waiting.done()
    node.leases.released["tag/1"].set()
    assert await waiting is True
    await until(lambda: node.server._waiting == 0)


async def test_lease_of_another_node_is_not_waited_for(client: PeerClient, node: Node) -> None:
    assert await client.wait_released(node.address, "tag/1") is False


async def test_waits_for_leases_are_limited(client: PeerClient, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.leases.released["tag/1"] = asyncio.Event()
    monkeypatch.setattr(peer_server, "LONGEST_WAIT_SECONDS", 0.02)
    assert await client.wait_released(node.address, "tag/1") is False
    monkeypatch.setattr(peer_server, "_MAX_WAITING", 0)
    monkeypatch.setattr(peer_server, "LONGEST_WAIT_SECONDS", 60.0)
    assert await client.wait_released(node.address, "tag/1") is False


async def test_events_are_sent_while_many_leases_are_waited_for(client: PeerClient, node: Node) -> None:
    released = node.leases.released["tag/1"] = asyncio.Event()
    waiting = [asyncio.create_task(client.wait_released(node.address, "tag/1")) for _ in range(100)]
    await until(lambda: node.server._waiting == 100)
    await client.send_event(node.address, {"event": 1})
    assert node.events == [{"event": 1}]
    released.set()
    assert await asyncio.gather(*waiting) == [True] * 100


async def test_peer_that_ends_its_wait_for_a_lease_is_not_counted(client: PeerClient, node: Node) -> None:
    node.leases.released["tag/1"] = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.wait_released(node.address, "tag/1")
    await until(lambda: node.server._waiting == 0)


async def test_lease_cannot_be_waited_for_at_a_node_that_is_gone_or_refuses(client: PeerClient, node: Node) -> None:
    with pytest.raises(PeerUnavailable):
        await client.wait_released("http://127.0.0.1:9", "tag/1")
    client.secret = "other"
    with pytest.raises(PeerUnavailable, match="401"):
        await client.wait_released(node.address, "tag/1")
