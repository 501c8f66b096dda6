"""Upstreams of several nodes that share one bucket in memory, each with a clock of its own; and requests to them."""

import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hubcache.decide.records import Visibility
from hubcache.fleet import keys
from hubcache.fleet.blob_read import BlobRead
from hubcache.fleet.bucket import Bucket
from hubcache.fleet.clock import BucketClock
from hubcache.fleet.leaders import Leaders
from hubcache.fleet.lease_waits import LeaseWaits
from hubcache.fleet.leases import Leases
from hubcache.fleet.lifetimes import Lifetimes
from hubcache.fleet.peer_client import PeerUnavailable
from hubcache.fleet.shared_answers import SharedAnswers
from hubcache.fleet.shared_upstream import SharedUpstream
from hubcache.fleet.sharing import Sharing
from hubcache.oci.digest import Digest
from hubcache.oci.errors import RegistryError
from hubcache.oci.media import COMMON_TYPES
from hubcache.transfer import upstream as upstream_module
from hubcache.transfer.blob_body import BlobBody, BlobDownload
from obstore.store import MemoryStore

from support.fleet import CountedRequests, KnownNodes, TestNode
from support.standin import Hub, Image
from support.upstreams import UpstreamSetup, upstream_to

HOST, REPO, ACCEPT = "registry-1.docker.io", "library/app", ", ".join(COMMON_TYPES)
TAG = keys.tag(HOST, REPO, "1")
LIFETIMES = Lifetimes(tag=600.0, error=30.0, max_stale=86400.0)


class SettableClock:
    """A node's clocks: time that a test adds passes for both, an error is one of the clock that shows the date."""

    def __init__(self, error: float = 0.0) -> None:
        self.ahead = 0.0
        self.error = error

    def wall(self) -> float:
        return time.time() + self.ahead + self.error

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class BucketTime:
    """The bucket's clock as `Leases` uses it: it is right, and no time is added."""

    def now(self) -> float:
        return time.time()


class UnsharedBlobs:
    """Reads all blobs from their registry."""

    def download(self, read: BlobRead, start: int = 0) -> AbstractAsyncContextManager[BlobDownload]:
        return read.download(start)

    def open(self, read: BlobRead, start: int = 0, end: int | None = None) -> AbstractAsyncContextManager[BlobBody]:
        return read.open(start, end)


@dataclass
class ReachableNodes:
    """Passes requests between the nodes of a test."""

    leases: dict[str, Leases] = field(default_factory=dict)
    """Those of the nodes that can be reached, by address."""
    waits: list[str] = field(default_factory=list)
    """The names of the leases that nodes waited for."""

    async def wait_released(self, address: str, name: str) -> bool:
        self.waits.append(name)
        if address not in self.leases:
            raise PeerUnavailable("cannot be reached")
        return await self.leases[address].wait_released(name)


@dataclass
class SharedSetup:
    """One node; `pauses` are those that its upstream reported."""

    upstream: SharedUpstream
    sharing: Sharing
    bucket: Bucket
    leases: Leases
    seen: CountedRequests
    clock: SettableClock
    line: UpstreamSetup
    peers: ReachableNodes
    pauses: list[tuple[str, str, float]] = field(default_factory=list)
    visibility: dict[str, Visibility | None] = field(default_factory=dict)
    """What the node's store knows of repositories; those that are not here were public long ago."""

    async def settle(self) -> None:
        """Wait until the node has written its answers, and delete its leases."""
        await self.sharing.answers.close()
        await self.leases._retired.delete_all()


@asynccontextmanager
async def shared_upstream(
    hub: Hub,
    store: MemoryStore,
    name: str,
    *,
    error: float = 0.0,
    lifetimes: Lifetimes = LIFETIMES,
    peers: ReachableNodes | None = None,
) -> AsyncIterator[SharedSetup]:
    """Run the upstream of a node whose clock is wrong by `error` seconds. It reaches the nodes that have the same
    `peers`, and is reached by them."""
    clock, seen, pauses = SettableClock(error), CountedRequests(), list[tuple[str, str, float]]()
    visibility = dict[str, Visibility | None]()
    bucket = Bucket(store, seen)
    bucket_clock = BucketClock(clock.wall, clock.monotonic)
    sent = bucket_clock.ticks()
    await bucket.put(f"node/{name}", b"{}")
    received = bucket_clock.ticks()
    written = await bucket.get(f"node/{name}")
    assert written is not None
    bucket_clock.observe(written.entry.modified, sent, received)
    seen.events.clear()
    me = TestNode(name, f"http://{name}:5002")
    leases, leaders = Leases(bucket, BucketTime(), me), Leaders(KnownNodes(me))
    if peers is None:
        peers = ReachableNodes()
    else:
        peers.leases[me.address] = leases
    answers = SharedAnswers(bucket, leases, LeaseWaits(leases, peers, leaders))
    sharing = Sharing(
        answers,
        bucket_clock,
        name,
        lambda *pause: pauses.append(pause),
        lambda _, repository: visibility.get(repository, Visibility(True, 0.0)),
        leaders,
        Lifetimes(lifetimes.tag, lifetimes.error, lifetimes.max_stale),
    )
    async with upstream_to(hub) as line:
        registry, client, tokens = line.upstream.registry, line.client, line.tokens
        upstream = SharedUpstream(registry, client, tokens, lambda _, __: None, None, sharing, UnsharedBlobs())
        upstream._clock, upstream._wall_clock = clock.monotonic, clock.wall
        try:
            yield SharedSetup(upstream, sharing, bucket, leases, seen, clock, line, peers, pauses, visibility)
        finally:
            await answers.close()
            await leases.close()


@asynccontextmanager
async def shared_upstreams(hub: Hub, count: int, **more: Any) -> AsyncIterator[list[SharedSetup]]:
    """Run several nodes that share a bucket."""
    store = MemoryStore()
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(shared_upstream(hub, store, f"node-{number}", **more))
            for number in range(count)
        ]


def shared_upstream_fixtures() -> tuple[Any, Any, Any]:
    """Return the fixtures `short_waits`, for all tests of a module, `nodes`, which are two, and `image`, which has the
    tag 1."""

    @pytest.fixture(autouse=True)
    def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upstream_module, "_BACKOFF_SECONDS", 0.01)

    @pytest.fixture
    async def nodes(hub: Hub) -> AsyncIterator[list[SharedSetup]]:
        async with shared_upstreams(hub, 2) as opened:
            yield opened

    @pytest.fixture
    def image(hub: Hub) -> Image:
        return hub.image(REPO, "1", [b"layer"])

    return short_waits, nodes, image


async def get(node: SharedSetup, reference: str | Digest = "1", accept: str = ACCEPT) -> bytes:
    """Return a manifest as the node's upstream does."""
    return (await node.upstream.get_manifest(REPO, reference, accept)).body


async def head(node: SharedSetup, reference: str | Digest = "1", accept: str = ACCEPT) -> Digest | None:
    """Return the digest of a manifest as the node's upstream does."""
    return (await node.upstream.head_manifest(REPO, reference, accept)).digest


def advance(nodes: list[SharedSetup], seconds: float) -> None:
    """Add time to the clocks of nodes."""
    for node in nodes:
        node.clock.ahead += seconds


def manifest_requests(hub: Hub) -> dict[str, int]:
    """Return the number of requests by method, without those that were sent before the node had a token."""
    return {
        method: hub.count(kind="manifest", method=method) - hub.count(kind="manifest", method=method, status=401)
        for method in ("HEAD", "GET")
    }


async def error_of(request: Awaitable[object]) -> RegistryError:
    """Return the error with which a request fails."""
    with pytest.raises(RegistryError) as caught:
        await request
    return caught.value
