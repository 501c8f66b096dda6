"""Blobs and events between nodes: growing files, stored files, the secret, and private content."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest
from aiohttp.test_utils import TestServer
from hubcache.fleet import peer_connections, peer_server
from hubcache.fleet.peer_client import PeerClient, PeerUnavailable
from hubcache.fleet.peer_server import PeerServer
from hubcache.fleet.secret import load_secret
from hubcache.oci.digest import Digest
from hubcache.store.store import Store
from hubcache.transfer.fills import Fills
from hubcache.transfer.sources import FileSource
from support.fleet import memory_bucket
from support.growing import GrowingBlob
from support.standin import random_bytes
from support.stores import opened_store, put_blob
from support.upstreams import RecordingObserver
from support.users import until

DATA = random_bytes(3_000_000, "blob")
DIGEST = Digest.of(DATA)


@dataclass
class Node:
    """A node's store, fills and server."""

    store: Store
    fills: Fills
    server: PeerServer
    address: str
    events: list[Mapping[str, object]] = field(default_factory=list)

    async def receive(self, fields: Mapping[str, object]) -> None:
        self.events.append(fields)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    listener = socket.create_server(("127.0.0.1", 0))
    async with opened_store(tmp_path) as store:
        fills = Fills(store, RecordingObserver(), store.index.staging_failed)
        server = PeerServer(store, fills, lambda fields: node.receive(fields))
        server.secret = "secret"
        node = Node(store, fills, server, f"http://127.0.0.1:{listener.getsockname()[1]}")
        await server.start(listener)
        try:
            yield node
        finally:
            await fills.close()
            await server.close()


@pytest.fixture
async def client() -> AsyncIterator[PeerClient]:
    client = PeerClient("hubcache-test")
    client.secret = "secret"
    yield client
    await client.close()


async def received(client: PeerClient, node: Node, start: int = 0) -> bytes | None:
    """Return the bytes that a node sends until it closes the connection; None where it has none."""
    parts: list[bytes] = []

    def consume(data: memoryview) -> bool:
        parts.append(bytes(data))
        return True

    async with client.open_blob(node.address, DIGEST, start) as body:
        if body is None:
            return None
        assert (body.start, body.size) == (start, len(DATA))
        assert await body.receive(consume)
    return b"".join(parts)


@pytest.mark.parametrize("start", [0, 1, len(DATA) - 1])
async def test_stored_blob_is_served(client: PeerClient, node: Node, start: int) -> None:
    await GrowingBlob(node.fills, DATA).store()
    assert await received(client, node, start) == DATA[start:]


@pytest.mark.parametrize("start", [0, 1_000_000])
async def test_growing_blob_is_served_as_it_grows(client: PeerClient, node: Node, start: int) -> None:
    blob = GrowingBlob(node.fills, DATA)
    blob.allow(500_000)
    reading = asyncio.create_task(received(client, node, start))
    await until(lambda: blob.fill.readers == 1)
    blob.allow(len(DATA))
    assert await reading == DATA[start:]


async def test_last_byte_is_held_back_until_the_digest_is_verified(client: PeerClient, node: Node) -> None:
    blob = GrowingBlob(node.fills, DATA, sent=DATA[:-1] + b"?")
    blob.allow(500_000)
    reading = asyncio.create_task(received(client, node))
    await until(lambda: blob.fill.readers == 1)  # a fill that has failed has no readers
    blob.allow(len(DATA))
    data = await reading
    assert data is not None
    assert len(data) < len(DATA)
    assert DATA.startswith(data)


async def test_peer_that_disconnects_is_no_error(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await GrowingBlob(node.fills, DATA).store()
    write = aiohttp.web.StreamResponse.write

    async def write_to_closed(response: aiohttp.web.StreamResponse, data: bytes) -> None:
        request = response._req
        assert request is not None
        assert request.transport is not None
        request.transport.abort()
        await write(response, data)

    monkeypatch.setattr(aiohttp.web.StreamResponse, "write", write_to_closed)
    headers = {"Authorization": "Bearer secret"}
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.get(f"{node.address}/blob/{DIGEST}", headers=headers) as answer:
                await answer.read()
    assert caplog.records == []


async def test_other_tasks_run_while_a_fast_peer_receives_a_blob(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await node.store.open_blob(await put_blob(node.store, bytes(10)))
    assert stored is not None
    monkeypatch.setattr(peer_server, "CHUNK", 1)
    written, seen = 0, list[int]()

    class Response(aiohttp.web.StreamResponse):
        async def write(self, data: bytes | bytearray | memoryview) -> None:
            nonlocal written
            written += len(data)

        async def write_eof(self, data: bytes = b"") -> None:
            pass

    async def look() -> None:
        while written < 10:
            seen.append(written)
            await asyncio.sleep(0)

    source = FileSource(stored, 0, 10)
    await asyncio.gather(look(), peer_server._send(source, Response()))
    await source.close()
    assert len({*seen}) >= 10


async def test_unknown_blob_is_absent(client: PeerClient, node: Node) -> None:
    assert await received(client, node) is None


async def test_private_blob_is_never_served(client: PeerClient, node: Node) -> None:
    await node.store.private.add(DIGEST)
    blob = GrowingBlob(node.fills, DATA)
    blob.allow(500_000)
    await blob.fill.wait_opened()
    assert await received(client, node) is None
    blob.allow(len(DATA))
    await blob.fill.wait_stored()
    assert await received(client, node) is None


@pytest.mark.parametrize("is_stored", [True, False])
async def test_blob_that_becomes_private_while_it_is_opened_is_not_served(
    client: PeerClient, node: Node, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    blob = GrowingBlob(node.fills, DATA)
    if is_stored:
        await blob.store()
    opening: Any = node.store if is_stored else blob.fill
    name = "open_blob" if is_stored else "wait_opened"
    method = getattr(opening, name)

    async def open_and_become_private(*arguments: object) -> object:
        opened = await method(*arguments)
        await node.store.private.add(DIGEST)
        return opened

    monkeypatch.setattr(opening, name, open_and_become_private)
    assert await received(client, node) is None
    blob.allow(len(DATA))
    await until(lambda: blob.fill.stored and blob.fill.readers == 0)


@pytest.mark.parametrize("secret", ["other", "", "sécret"])
async def test_node_without_the_secret_is_refused(client: PeerClient, node: Node, secret: str) -> None:
    await GrowingBlob(node.fills, DATA).store()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {secret}"}) as session:
        for method, path in (("GET", f"/blob/{DIGEST}"), ("POST", "/event"), ("GET", "/other")):
            async with session.request(method, f"{node.address}{path}") as response:
                assert response.status == 401
    client.secret = "other"
    with pytest.raises(PeerUnavailable, match="401"):
        await received(client, node)
    client.secret = None
    with pytest.raises(PeerUnavailable, match="not known"):
        await received(client, node)
    assert node.events == []


async def test_server_without_a_secret_refuses_everyone(client: PeerClient, node: Node) -> None:
    node.server.secret = None
    for client.secret in ("None", "secret"):
        with pytest.raises(PeerUnavailable, match="401"):
            await received(client, node)


async def test_body_that_stalls_can_be_waited_for(
    client: PeerClient, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client._downloads, "_progress_seconds", 0.1)
    blob = GrowingBlob(node.fills, DATA)
    blob.allow(700_000)
    parts: list[bytes] = []

    def consume(data: memoryview) -> bool:
        parts.append(bytes(data))
        return True

    async with client.open_blob(node.address, DIGEST) as body:
        assert body is not None
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await body.receive(consume)
        blob.allow(len(DATA))
        assert await body.receive(consume)
    assert b"".join(parts) == DATA


async def test_blob_whose_size_is_not_known_yet_is_a_time_out(
    client: PeerClient, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client._downloads, "_progress_seconds", 0.1)
    blob = GrowingBlob(node.fills, DATA, opens=False)
    with pytest.raises(TimeoutError):
        await received(client, node)
    await until(lambda: blob.fill.readers == 0)


async def test_node_that_is_gone_is_unavailable(client: PeerClient, node: Node) -> None:
    await node.server.close()
    with pytest.raises(PeerUnavailable, match="cannot be reached"):
        await received(client, node)
    with pytest.raises(PeerUnavailable, match="cannot be reached"):
        await client.send_event(node.address, {})


@pytest.mark.parametrize(
    "address",
    [f"http://{'a' * 70}.x:80", "http://a\\b:80", "http://[::1]a:80", "http://a b:80", "http://a:x", "http://:1"],
)
async def test_address_that_is_none_is_unavailable(client: PeerClient, address: str) -> None:
    with pytest.raises(PeerUnavailable):
        async with client.open_blob(address, DIGEST):
            pass
    with pytest.raises(PeerUnavailable):
        await client.send_event(address, {})


@pytest.mark.parametrize("secret", ["a\r\nb", "a\nb", "\ud800"])
async def test_event_with_a_secret_that_cannot_be_sent_is_unavailable(
    client: PeerClient, node: Node, secret: str
) -> None:
    client.secret = secret
    with pytest.raises(PeerUnavailable):
        await client.send_event(node.address, {})
    with pytest.raises(PeerUnavailable):
        await received(client, node)


async def test_event_is_received(client: PeerClient, node: Node) -> None:
    await client.send_event(node.address, {"paused": {"seconds": 3}})
    assert node.events == [{"paused": {"seconds": 3}}]


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
async def test_malformed_event_is_refused(node: Node, body: bytes) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer secret"}) as session,
        session.post(f"{node.address}/event", data=body) as response,
    ):
        assert response.status == 400
    assert node.events == []


async def test_first_node_makes_the_secret() -> None:
    bucket, _ = memory_bucket()
    made = await asyncio.gather(*(load_secret(bucket) for _ in range(4)))
    assert len(set(made)) == 1
    assert made[0] is not None
    assert len(made[0]) == 64
    assert await load_secret(bucket) == made[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 2, "secret": "0" * 64},
        {"format": 1},
        *(
            {"format": 1, "secret": secret}
            for secret in ("", "0" * 63, "G" * 64, "0" * 62 + "\r\n", "0" * 64 + "\n", 1)
        ),
    ],
)
async def test_secret_of_another_form_is_not_used(fields: dict[str, object]) -> None:
    bucket, _ = memory_bucket()
    await bucket.put("secret", json.dumps(fields).encode())
    assert await load_secret(bucket) is None


async def test_secret_with_line_breaks_is_not_sent(client: PeerClient, node: Node) -> None:
    client.secret = "secret\r\n\r\nGET /other HTTP/1.1\r\n"
    with pytest.raises(PeerUnavailable, match="cannot be reached"):
        await received(client, node)


async def test_redirect_of_a_node_is_not_followed(client: PeerClient, node: Node) -> None:
    async def redirect(request: aiohttp.web.Request) -> aiohttp.web.Response:
        raise aiohttp.web.HTTPTemporaryRedirect(f"{node.address}/event")

    app = aiohttp.web.Application()
    app.router.add_route("*", "/{path:.*}", redirect)
    async with TestServer(app) as server:
        address = f"http://127.0.0.1:{server.port}"
        with pytest.raises(PeerUnavailable, match="status 307"):
            await client.send_event(address, {})
        with pytest.raises(PeerUnavailable, match="status 307"):
            async with client.open_blob(address, DIGEST):
                pass
    assert node.events == []


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
