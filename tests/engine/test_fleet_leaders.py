"""Engines of one fleet: the node that fetched a manifest fetches the blobs for the others, too."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener
from obstore.store import MemoryStore
from support import fleet_engines as fleet
from support.engine import Cache
from support.standin import Hub, Image, random_bytes
from support.users import until

REPO = "library/debian"
LAYERS = [random_bytes(200_000, f"layer {number}") for number in range(3)]


@pytest.fixture
def image(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Image:
    fleet.use_store(monkeypatch, MemoryStore())
    return hub.image(REPO, "1", LAYERS)


def requests(cache: Cache) -> int:
    """Return the number of requests to the bucket that pulls have caused."""
    node: Any = cache.engine._fleet
    return int(node._counts.requests_of_pulls.total())


async def know_each_other(caches: list[Cache]) -> None:
    engines: Any = [cache.engine for cache in caches]
    await until(lambda: all(len(engine._fleet._membership.nodes) == len(caches) for engine in engines))


async def get_manifest(cache: Cache, image: Image) -> None:
    assert await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1") == (200, image.manifest)


async def get_blobs(cache: Cache, image: Image) -> None:
    found = await asyncio.gather(*(cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{blob}") for blob in image.blobs))
    assert [(status, str(Digest.of(body))) for status, body in found] == [(200, blob) for blob in image.blobs]


async def test_blobs_come_from_the_node_that_fetched_the_manifest(hub: Hub, image: Image, tmp_path: Path) -> None:
    async with fleet.nodes(hub, tmp_path, 3) as caches:
        await know_each_other(caches)
        for cache in caches:
            await get_manifest(cache, image)
        before = [requests(cache) for cache in caches[1:]]
        await asyncio.gather(*(get_blobs(cache, image) for cache in caches[1:]))
        assert [requests(cache) for cache in caches[1:]] == before
        await until(lambda: all(caches[0].engine.store.has(Digest.parse(blob)) for blob in image.blobs))
        assert hub.count(kind="cdn", method="GET") == len(image.blobs)
        await get_blobs(caches[0], image)
    assert hub.count(kind="cdn", method="GET") == len(image.blobs)


async def test_leader_fetches_nothing_from_a_repository_that_turned_private(
    hub: Hub, image: Image, tmp_path: Path
) -> None:
    async with fleet.nodes(hub, tmp_path, 2) as caches:
        leader, follower = caches
        await know_each_other(caches)
        for cache in caches:
            await get_manifest(cache, image)
        await leader.engine._access.record_refused("registry-1.docker.io", REPO, None)
        hub.reset_log()
        await get_blobs(follower, image)
        assert not any(leader.engine.store.has(Digest.parse(blob)) for blob in image.blobs)
        assert hub.count(kind="cdn", method="GET") == len(image.blobs)
