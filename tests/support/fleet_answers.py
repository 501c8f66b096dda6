"""Engines that share the answers of a registry in a bucket, with clocks that a test advances."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.fleet import membership
from hubcache.serve.messages import Answer, Change, Listener
from obstore.store import MemoryStore

from support import fleet_engines
from support.engine import Cache
from support.shared_upstreams import BucketTime
from support.standin import Hub, Image
from support.users import Clock

HOST, REPO = "registry-1.docker.io", "library/app"
TAG = f"/v2/{REPO}/manifests/1"


class FleetClock(Clock):
    """A node's clock, which a test advances; the bucket's clock, by which the node compares times, is right."""

    def __init__(self, patch: pytest.MonkeyPatch, cache: Cache, error: float = 0.0) -> None:
        super().__init__(patch, cache)
        self.error = error
        engine: Any = cache.engine
        fleet = engine._fleet
        patch.setattr(fleet._clock, "_wall", self.time)
        patch.setattr(fleet._clock, "_monotonic", self.monotonic)
        patch.setattr(fleet._changes, "_wall_clock", self.time)
        patch.setattr(fleet._leases, "_clock", BucketTime())

    def time(self) -> float:
        return super().time() + self.error


class Nodes(list[Cache]):
    """Caches that share a bucket, and know of each other."""

    def __init__(self, caches: list[Cache], patch: pytest.MonkeyPatch) -> None:
        super().__init__(caches)
        self.clocks = [FleetClock(patch, cache) for cache in caches]

    def advance(self, seconds: float) -> None:
        for clock in self.clocks:
            clock.ahead += seconds

    async def settle(self) -> None:
        """Wait until all nodes have written their answers."""
        for cache in self:
            engine: Any = cache.engine
            await engine._fleet._answers.close()


async def opened(caches: list[Cache], patch: pytest.MonkeyPatch) -> Nodes:
    for cache in caches:
        engine: Any = cache.engine
        await engine._fleet._membership.beat()
    return Nodes(caches, patch)


async def pull(cache: Cache, path: str = TAG) -> tuple[int, bytes]:
    """Request a tag as containerd does, by HEAD and GET; return status and body."""
    head, _ = await cache.ask(Listener.MIRROR, "HEAD", path)
    assert isinstance(head, Answer)
    status, body = await cache.get(Listener.MIRROR, path)
    assert status == head.status
    return status, body


def requests(hub: Hub) -> tuple[int, int]:
    """Return the numbers of HEADs and GETs of manifests that were sent with a token."""
    sent = [record for record in hub.requests(kind="manifest") if record.status != 401]
    return tuple(sum(record.method == method for record in sent) for method in ("HEAD", "GET"))  # type: ignore[return-value]


def objects(store: MemoryStore, prefix: str) -> list[str]:
    return [entry["path"] for page in store.list(prefix) for entry in page]


async def report(cache: Cache, reference: str) -> None:
    """Report a push or delete that the registry has accepted, as the plugin does."""
    await cache.engine.content_changed(cache.settings.registries[0], Change(REPO, reference))


def fleet_answer_fixtures() -> tuple[Any, Any, Any]:
    """Return the fixtures `bucket`, `nodes`, which are three that share it, and `image`, which has the tag 1."""

    @pytest.fixture
    def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
        store = MemoryStore()
        fleet_engines.use_store(monkeypatch, store)
        return store

    @pytest.fixture
    async def nodes(
        hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Nodes]:
        monkeypatch.setattr(membership, "HEARTBEAT_SECONDS", 3600.0)
        async with fleet_engines.nodes(hub, tmp_path, 3, tag_ttl=60.0) as caches:
            yield await opened(caches, monkeypatch)

    @pytest.fixture
    def image(hub: Hub) -> Image:
        return hub.image(REPO, "1", [b"layer"])

    return bucket, nodes, image
