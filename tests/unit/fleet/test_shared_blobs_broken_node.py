"""Shared blobs when a node sends too little, too slowly or wrong bytes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

import pytest
from aiohttp import web
from hubcache.fleet import peer_transfer, shared_fill
from hubcache.oci.errors import BadUpstream
from support.fleet_nodes import SharingFleet
from support.shared_layers import DIGEST, KEY, LAYER, hold_lease, sharing_fleet_fixture

fleet = sharing_fleet_fixture()


class BrokenNode:
    """A node that answers with the first bytes of a body, and then as `misbehave` does; it holds the lease of the layer
    and goes on renewing it."""

    def __init__(self, fleet: SharingFleet, sent: bytes, misbehave: Callable[[web.StreamResponse], Awaitable[object]]):
        self._fleet = fleet
        self._sent = sent
        self._misbehave = misbehave
        self.requests = 0

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        response = web.StreamResponse(headers={"Content-Length": str(len(LAYER))})
        await response.prepare(request)
        await response.write(self._sent)
        await self._misbehave(response)
        assert request.transport is not None
        request.transport.close()
        return response

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        app = web.Application()
        app.router.add_get("/blob/{digest}", self._serve)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        await hold_lease(self._fleet, DIGEST, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield self
        finally:
            await runner.cleanup()


async def nothing(_: web.StreamResponse) -> None:
    """Break off after the first bytes."""


async def trickle(response: web.StreamResponse) -> None:
    """Send the last bytes one by one."""
    for value in LAYER[-1_000:]:
        await asyncio.sleep(0.02)
        await response.write(bytes([value]))


async def test_node_whose_body_breaks_off_is_not_asked_again(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempts of the fill would be used up."""
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    async with BrokenNode(fleet, LAYER[:500], nothing).running() as broken, fleet.node("a") as node:
        assert await node.pull(DIGEST) == LAYER
        assert broken.requests == 1
        assert fleet.fetched(DIGEST) == 1


async def test_node_that_sends_too_slowly_is_given_up(fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(peer_transfer, "PATIENCE_SECONDS", 0.1)
    async with BrokenNode(fleet, LAYER[:-1_000], trickle).running() as broken, fleet.node("a") as node:
        assert await node.pull(DIGEST) == LAYER
        assert broken.requests == 1
        assert fleet.fetched(DIGEST) == 1


async def test_node_is_not_asked_again_after_wrong_bytes_to_which_the_registry_added_the_rest(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    async with BrokenNode(fleet, b"wrong", nothing).running() as broken, fleet.node("a") as node:
        with pytest.raises(BadUpstream):
            await node.pull(DIGEST)
        assert await node.pull(DIGEST) == LAYER
        assert broken.requests == 1


async def test_wrong_bytes_of_a_node_do_not_delete_the_object(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    async with BrokenNode(fleet, b"?" * len(LAYER), nothing).running() as broken, fleet.node("a") as node:
        with pytest.raises(BadUpstream):
            await node.pull(DIGEST)
        await fleet.bucket.put(KEY, LAYER)
        assert await node.pull(DIGEST) == LAYER
        await node.shared.close()
        assert await fleet.object(KEY) == LAYER
        assert broken.requests == 1
