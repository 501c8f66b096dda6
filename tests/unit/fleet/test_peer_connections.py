"""Connections to the port for peers: without the secret, too many, and stalled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hubcache.fleet import peer_connections, peer_server
from hubcache.fleet.peer_client import PeerClient, PeerUnavailable
from support.peers import Node, peer_fixtures
from support.users import until

node, client = peer_fixtures()

AUTHENTICATED = b"POST /event HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*node.address.removeprefix("http://").split(":"))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of a connection, also by a reset."""
    async with asyncio.timeout(20):
        with suppress(ConnectionError):
            await reader.read()
    return True


async def is_served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the server accepts an event on a connection, which stays open."""
    try:
        writer.write(AUTHENTICATED)
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    assert head.startswith(b"HTTP/1.1 204 ")
    return True


@pytest.mark.parametrize(
    "sent",
    [b"", AUTHENTICATED[:70], b"GET /event HTTP/1.1\r\nHost: a\r\n\r\n", AUTHENTICATED.replace(b"secret", b"other")],
)
async def test_connection_without_the_secret_is_closed(
    node: Node, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_connections, "HEAD_SECONDS", 0.1)
    async with connected(node) as (reader, writer):
        writer.write(sent)
        assert await is_closed(reader)
    assert node.events == []


async def test_connection_with_the_secret_has_no_timer(node: Node) -> None:
    async with connected(node) as (reader, writer):
        assert await is_served(reader, writer)
        assert node.server._connections is not None
        assert node.server._connections._waiting == {}
        assert await is_served(reader, writer)


async def test_oldest_connection_without_the_secret_is_closed_when_there_are_many(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_connections, "MAX_WAITING", 2)
    async with connected(node) as served:
        assert await is_served(*served)
        async with connected(node) as first, connected(node) as second, connected(node) as third:
            assert await is_closed(first[0])
            for connection in (served, second, third):
                assert await is_served(*connection)


async def test_connections_beyond_the_limit_are_refused(
    client: PeerClient, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_connections, "MAX_CONNECTIONS", 2)
    async with connected(node) as first:
        async with connected(node) as second:
            assert await is_served(*first)
            assert await is_served(*second)
            with pytest.raises(PeerUnavailable):
                await client.send_event(node.address, {})
            assert await is_served(*first)

        server = node.server._runner.server
        assert server is not None
        await until(lambda: len(server.connections) < 2)
        await client.send_event(node.address, {})


async def test_event_whose_body_stalls_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_server, "_EVENT_SECONDS", 0.1)
    async with connected(node) as (reader, writer):
        writer.write(AUTHENTICATED[:-1])
        async with asyncio.timeout(20):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    assert node.events == []
