"""A node that serves blobs and receives events, and a client of it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hubcache.fleet.peer_client import PeerClient
from hubcache.fleet.peer_server import PeerServer
from hubcache.oci.digest import Digest
from hubcache.store.store import Store
from hubcache.transfer.fills import Fills

from support.standin import random_bytes
from support.stores import opened_store
from support.upstreams import RecordingObserver

DATA = random_bytes(3_000_000, "blob")
DIGEST = Digest.of(DATA)


class UnsharedFills:
    """Begins no fill for another node."""

    def is_asking_leader(self, digest: Digest) -> bool:
        return False

    async def begin(self, host: str, repository: str, digest: Digest) -> None:
        pass


class HeldLeases:
    """Leases that a node holds until their events are set, by name."""

    def __init__(self) -> None:
        self.released: dict[str, asyncio.Event] = {}

    async def wait_released(self, name: str) -> bool:
        if name not in self.released:
            return False
        await self.released[name].wait()
        return True


@dataclass
class Node:
    """A node's store, fills and server."""

    store: Store
    fills: Fills
    server: PeerServer
    address: str
    leases: HeldLeases
    events: list[Mapping[str, object]] = field(default_factory=list)

    async def receive(self, fields: Mapping[str, object]) -> None:
        self.events.append(fields)


async def received(
    client: PeerClient, node: Node, start: int = 0, origin: tuple[str, str] | None = None
) -> bytes | None:
    """Return the bytes that a node sends until it closes the connection; None where it has none."""
    parts: list[bytes] = []

    def consume(data: memoryview) -> bool:
        parts.append(bytes(data))
        return True

    async with client.open_blob(node.address, DIGEST, start, origin) as body:
        if body is None:
            return None
        assert (body.start, body.size) == (start, len(DATA))
        assert await body.receive(consume)
    return b"".join(parts)


def peer_fixtures() -> tuple[Any, Any]:
    """Return the fixtures `node` and `client`, which have the same secret."""

    @pytest.fixture
    async def node(tmp_path: Path) -> AsyncIterator[Node]:
        listener = socket.create_server(("127.0.0.1", 0))
        async with opened_store(tmp_path) as store:
            fills = Fills(store, RecordingObserver(), store.index.staging_failed)
            leases = HeldLeases()
            server = PeerServer(store, fills, UnsharedFills(), leases, lambda fields: running.receive(fields))
            server.secret = "secret"
            running = Node(store, fills, server, f"http://127.0.0.1:{listener.getsockname()[1]}", leases)
            await server.start(listener)
            try:
                yield running
            finally:
                await fills.close()
                await server.close()

    @pytest.fixture
    async def client() -> AsyncIterator[PeerClient]:
        client = PeerClient("hubcache-test")
        client.secret = "secret"
        yield client
        await client.close()

    return node, client
