"""Blobs between nodes: growing files, stored files and private content."""

import asyncio
from typing import Any

import aiohttp
import aiohttp.web
import pytest
from aiohttp.test_utils import TestServer
from hubcache.fleet import peer_server
from hubcache.fleet.peer_client import PeerClient, PeerUnavailable
from hubcache.transfer.sources import FileSource
from support.growing import GrowingBlob
from support.peers import DATA, DIGEST, Node, peer_fixtures, received
from support.stores import put_blob
from support.users import until

node, client = peer_fixtures()


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


@pytest.mark.parametrize("origin", [None, ("registry-1.docker.io", "library/app")])
async def test_private_blob_is_never_served(client: PeerClient, node: Node, origin: tuple[str, str] | None) -> None:
    await node.store.private.add(DIGEST)
    blob = GrowingBlob(node.fills, DATA)
    blob.allow(500_000)
    await blob.fill.wait_opened()
    assert await received(client, node, origin=origin) is None
    blob.allow(len(DATA))
    await blob.fill.wait_stored()
    assert await received(client, node, origin=origin) is None


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
