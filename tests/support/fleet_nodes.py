"""Nodes of a fleet that share blobs: each has a store, fills, an upstream and a server for its peers, and no engine."""

import functools
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hubcache.fleet import leases
from hubcache.fleet.blob_read import BlobRead
from hubcache.fleet.bucket import Bucket, BucketUnavailable, ObjectBody, StoredObject
from hubcache.fleet.fleet_counts import FleetCounts
from hubcache.fleet.leaders import Leaders
from hubcache.fleet.leases import Holder, Leases
from hubcache.fleet.peer_client import PeerClient
from hubcache.fleet.peer_server import PeerServer
from hubcache.fleet.shared_blobs import SharedBlobs
from hubcache.fleet.uploads import Uploads
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored, StorageError
from hubcache.store.store import Store
from hubcache.transfer.fill import Fill
from hubcache.transfer.fills import Fills
from hubcache.transfer.sources import FillSource, Source, UpstreamSource
from obstore.store import MemoryStore

from support.fleet import AdjustableClock, KnownNodes, TestNode
from support.standin import Hub
from support.stores import opened_store
from support.upstreams import UpstreamSetup, upstream_to
from support.users import until

REPO = "library/debian"
SECRET = "secret of the fleet"


class FaultyBucket(Bucket):
    """A bucket whose bodies break off, and that can be down."""

    break_after: int | None = None
    """The next body breaks off after this many bytes."""
    is_down = False

    @property
    def is_usable(self) -> bool:
        return not self.is_down

    async def open(self, key: str, start: int = 0, end: int | None = None) -> ObjectBody | None:
        body = await super().open(key, start, end)
        if body is None or self.break_after is None:
            return body
        most, self.break_after = self.break_after, None
        return replace(body, chunks=_broken(body.chunks, most))


def _broken(chunks: Iterator[memoryview], most: int) -> Iterator[memoryview]:
    for chunk in chunks:
        yield chunk[:most]
        most -= len(chunk[:most])
        if not most:
            raise BucketUnavailable("transfer from the bucket broke off")


@dataclass
class AskedRoom:
    """The bucket's capacity."""

    free: int = 1 << 30
    used: list[tuple[int, bool]] = field(default_factory=list)
    """Uploads that ended: their sizes, and whether they are stored."""

    async def take(self, size: int) -> bool:
        return size <= self.free

    def ended(self, size: int, *, is_stored: bool) -> None:
        self.used.append((size, is_stored))


@dataclass
class SharingNode:
    """One node."""

    name: str
    store: Store
    fills: Fills
    line: UpstreamSetup
    bucket: FaultyBucket
    leases: Leases
    leaders: Leaders
    peers: PeerClient
    server: PeerServer
    address: str
    uploads: Uploads
    room: AskedRoom
    shared: SharedBlobs
    counts: FleetCounts
    permitted: bool = True
    """Whether every client may read everything without a request to the registry."""
    permitted_in_outages: bool = False
    checks: list[str | None] = field(default_factory=list)
    """The credentials with which the registry was asked by HEAD."""

    def permits(self, host: str, repository: str, digest: Digest, outage: bool) -> bool:
        return self.permitted_in_outages if outage else self.permitted

    def read(self, digest: Digest, authorization: str | None = None, repository: str = REPO) -> BlobRead:
        """Return a read of a blob, anonymously or with a client's own credentials."""
        upstream = self.line.upstream

        async def check() -> int | None:
            self.checks.append(authorization)
            return await upstream.head_blob(repository, digest, authorization)

        return BlobRead(
            *(upstream.registry.host, repository, digest, authorization is None, authorization, check),
            lambda start: upstream.download_blob(repository, digest, start, authorization),
            lambda start, end: upstream.open_blob(repository, digest, start, end, authorization),
        )

    def start(
        self, digest: Digest, authorization: str | None = None, size: int | None = None, repository: str = REPO
    ) -> Fill:
        """Start a fill, or join the one that runs."""
        read = self.read(digest, authorization, repository)
        host = self.line.upstream.registry.host
        return self.fills.start(digest, size, lambda start: self.shared.download(read, start), "client", host)

    async def begin(self, host: str, repository: str, digest: Digest) -> None:
        """Start a fill for another node."""
        self.start(digest, repository=repository)

    async def pull(self, digest: Digest, authorization: str | None = None) -> bytes:
        """Read a blob while it is filled, as a client does."""
        fill = self.start(digest, authorization)
        with fill.reading():
            size = await fill.wait_opened()
            source = self.follow(fill, size)
        return await drained(source)

    def follow(self, fill: Fill, size: int) -> FillSource:
        def no_fallback(start: int, end: int) -> Source:
            raise AssertionError("the store does not fail")

        assert fill.staged is not None
        return FillSource(fill, fill.staged.path, os.dup(fill.staged.fd), 0, size, no_fallback)

    def stream(self, digest: Digest, start: int, end: int) -> UpstreamSource:
        """Return a blob that is not stored."""
        read = self.read(digest)
        return UpstreamSource(lambda first, last: self.shared.open(read, first, last), start, end)

    async def vanish(self) -> None:
        """Stop as a process that is killed: connections break, leases stay and are not renewed."""
        for lease in self.leases._own.values():
            if lease._renewing is not None:
                lease._renewing.cancel()
        self.leases._own.clear()
        await self.server.close()
        self.bucket.is_down = True
        self.fills.on_ended = lambda _: None
        await self.fills.close()


async def drained(source: Source) -> bytes:
    """Return all bytes of a source, and close it."""
    parts = []
    try:
        while not source.finished:
            parts.append(await source.read())
    finally:
        await source.close()
    return b"".join(parts)


class SharingFleet:
    """Nodes with one bucket."""

    def __init__(self, hub: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hub = hub
        self.expired: set[str] = set()
        """Nodes whose leases have expired."""
        self.objects = MemoryStore()
        self.clock = AdjustableClock()
        self.members: list[TestNode] = []
        """The nodes that are or were running."""
        self.bucket = Bucket(self.objects, FleetCounts())
        self._directory = directory
        holder_of = leases._holder

        def aged(found: StoredObject) -> Holder:
            holder = holder_of(found)
            return replace(holder, modified=0.0) if holder.node in self.expired else holder

        monkeypatch.setattr(leases, "_holder", aged)

    @asynccontextmanager
    async def nodes(self, count: int, *, shares_private: bool = False) -> AsyncIterator[list[SharingNode]]:
        """Run nodes."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(self.node(f"node{number}", shares_private=shares_private))
                for number in range(count)
            ]

    @asynccontextmanager
    async def node(self, name: str, *, shares_private: bool = False) -> AsyncIterator[SharingNode]:
        """Run a node."""
        listener = socket.create_server(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with opened_store(self._directory / name, 1 << 28) as store, upstream_to(self.hub) as line:
            fills = Fills(store, line.seen, functools.partial(_storage_failed, store))
            counts, room = FleetCounts(), AskedRoom()
            bucket = FaultyBucket(self.objects, counts)
            me = TestNode(name, address)
            self.members.append(me)
            own_leases, leaders = Leases(bucket, self.clock, me), Leaders(KnownNodes(me, self.members))
            peers = PeerClient("hubcache-test")
            uploads = Uploads(bucket, store, room, counts)
            shared = SharedBlobs(
                *(bucket, own_leases, peers, uploads, store, fills),
                *(lambda *asked: node.permits(*asked), lambda *asked: node.begin(*asked), leaders, counts),
                shares_private=shares_private,
            )
            server = PeerServer(store, fills, shared.for_peers, own_leases, _ignore)
            peers.secret = server.secret = SECRET
            fills.on_ended = shared.fill_ended
            node = SharingNode(
                *(name, store, fills, line, bucket, own_leases, leaders, peers, server, address, uploads, room),
                *(shared, counts),
            )
            await server.start(listener)
            try:
                yield node
            finally:
                await fills.close()
                await server.close()
                await uploads.close()
                await shared.close()
                await own_leases.close()
                await peers.close()

    async def keys(self, prefix: str) -> list[str]:
        """Return the keys of all objects below a prefix."""
        return [entry.key async for entry in self.bucket.list(prefix)]

    async def object(self, key: str) -> bytes | None:
        """Return the bytes of an object."""
        found = await self.bucket.get(key)
        return None if found is None else found.value

    def fetched(self, digest: Digest) -> int:
        """Return how often a blob's bytes were requested from the registry."""
        return len(self.hub.requests(kind="cdn", method="GET", path=f"*{digest.hex}*"))


def _storage_failed(store: Store, error: StorageError) -> None:
    if not isinstance(error, NotStored):
        store.index.staging_failed(error)


async def _ignore(_: object) -> None:
    pass


async def settled(*nodes: SharingNode) -> None:
    """Wait until all fills of nodes have ended, and nothing waits for its upload."""
    await until(lambda: not any(node.fills._tasks or node.uploads.waiting or node.uploads._tasks for node in nodes))
