"""Engines of one fleet and the bytes of images: who asks the registry, the bucket and other nodes, and who must not."""

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hubcache.fleet import keys as names
from hubcache.fleet.bucket import Bucket
from hubcache.fleet.bucket_bodies import BucketTransfer
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream
from hubcache.serve import cached_blobs
from hubcache.serve.messages import Listener
from hubcache.transfer.download_response import Consume
from obstore.store import MemoryStore
from support import fleet_engines as fleet
from support.engine import Cache
from support.standin import Fault, Hub, Image, random_bytes
from support.users import SECRET, assert_refused, bearer, pull, until

REPO = "library/debian"
LAYER = random_bytes(3 << 20, "layer")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """The bucket of all nodes of a test."""
    store = MemoryStore()
    fleet.use_store(monkeypatch, store)
    return store


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image(REPO, "1", [LAYER])


def keys(store: MemoryStore, prefix: str = "") -> list[str]:
    return [entry["path"] for page in store.list(prefix) for entry in page]


def record_keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with the key of each request to the bucket, except those of heartbeats and sweeps."""
    asked: list[str] = []
    for name in ("get", "head", "put", "create", "replace", "delete", "open", "upload"):
        method = getattr(Bucket, name)

        def record(self: Bucket, key: str, *rest: Any, _method: Any = method) -> Any:
            if key.partition("/")[0] in ("blob", "private", "manifest", "tag", "lease"):
                asked.append(key)
            return _method(self, key, *rest)

        monkeypatch.setattr(Bucket, name, record)
    return asked


async def pull_exactly(cache: Cache, image: Image, **headers: str) -> None:
    """Pull an image, and check each byte."""
    listener = Listener.PROXY if headers else Listener.MIRROR
    assert await cache.get(listener, f"/v2/{image.repo}/manifests/{image.tag}", **headers) == (200, image.manifest)
    for digest in image.blobs:
        status, body = await cache.get(listener, f"/v2/{image.repo}/blobs/{digest}", **headers)
        assert (status, f"sha256:{sha256(body).hexdigest()}") == (200, digest)


async def idle(*caches: Cache) -> None:
    """Wait until all is stored and uploaded."""
    engines: Any = [cache.engine for cache in caches]
    await until(lambda: not any(engine.fills._tasks or engine._fleet._uploads.waiting for engine in engines))


async def test_24_clients_of_4_nodes_cause_one_download(
    hub: Hub, bucket: MemoryStore, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(hub, tmp_path, 4) as caches:
        await asyncio.gather(*(pull_exactly(cache, image) for cache in caches for _ in range(6)))
        assert hub.count(kind="cdn", method="GET") == len(image.blobs)
        await idle(*caches)
        asked = record_keys(monkeypatch)
        for cache in caches:
            await pull_exactly(cache, image)
        assert asked == [], "a warm pull makes no request to the bucket"
    assert len(keys(bucket, "blob")) == len(image.blobs)
    assert keys(bucket, "lease") == []


async def test_blob_that_is_not_stored_comes_from_the_bucket(
    hub: Hub, bucket: MemoryStore, image: Image, tmp_path: Path
) -> None:
    async with fleet.node(hub, tmp_path / "a") as first:
        await pull_exactly(first, image)
        await idle(first)
    hub.reset_log()
    async with fleet.node(hub, tmp_path / "b", max_blob=1 << 20) as second:
        await pull_exactly(second, image)
        assert hub.count(kind="cdn") == 0
        assert not second.engine.store.has(image.layers[0])


async def test_image_that_the_policy_of_all_nodes_refuses_is_downloaded_once(
    hub: Hub, bucket: MemoryStore, image: Image, tmp_path: Path
) -> None:
    """The stores are full of an image that is requested more often."""
    other = hub.image(REPO, "2", [random_bytes(3 << 20, "other")])
    async with fleet.nodes(hub, tmp_path, 2, size=6 << 20, admit_after=3) as caches:
        for cache in caches:
            for _ in range(5):
                await pull_exactly(cache, image)
            await idle(cache)
        hub.reset_log()
        await asyncio.gather(*(pull_exactly(cache, other) for cache in caches))
        await idle(*caches)
        assert hub.count(kind="cdn", method="GET") == len(other.blobs)
        assert all(cache.engine.store.usage.held == {} for cache in caches)


async def test_pull_that_is_counted_for_a_client_is_shared(
    hub: Hub, bucket: MemoryStore, image: Image, tmp_path: Path
) -> None:
    hub.user("alice", "alice's")
    async with fleet.nodes(hub, tmp_path, 2) as caches:
        for cache in caches:
            await pull_exactly(cache, image, authorization=bearer(hub, "alice", REPO))
            await idle(cache)
        assert hub.count(kind="cdn", method="GET") == len(image.blobs)


@pytest.mark.parametrize("is_shared", [False, True])
async def test_private_image_enters_the_bucket_only_with_the_option(
    hub: Hub, bucket: MemoryStore, secret: Image, tmp_path: Path, is_shared: bool
) -> None:
    async with fleet.nodes(hub, tmp_path, 2, authorize=True, bucket_private=is_shared) as caches:
        for cache in caches:
            own = bearer(hub, "alice", SECRET)
            assert set(await pull(cache, secret, authorization=own)) == {200}
            await idle(cache)
        for cache in caches:
            await assert_refused(cache, secret, Listener.PROXY)
            await assert_refused(cache, secret, Listener.PROXY, authorization=bearer(hub, "bob", SECRET))
        fetched = len(secret.blobs) * (1 if is_shared else 2)
        assert hub.count(kind="cdn", method="GET") == fetched
        assert len(keys(bucket, "private")) == (len(secret.blobs) if is_shared else 0)
        assert keys(bucket, "blob") == []
        assert keys(bucket, "manifest") == keys(bucket, "tag") == []


async def test_clients_of_the_other_nodes_finish_when_a_node_stops_in_the_middle(
    hub: Hub, bucket: MemoryStore, image: Image, tmp_path: Path
) -> None:
    path = f"/v2/{REPO}/blobs/{image.layers[0]}"
    async with fleet.nodes(hub, tmp_path, 2) as others:
        fault = hub.faults.add(Fault(kind="cdn", pause_after=1 << 20, times=1))
        async with fleet.node(hub, tmp_path / "stops") as holder:
            for cache in (holder, *others):
                await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1")
            outcome = await holder.engine.answer(holder.request(Listener.MIRROR, "GET", path))
            await until(lambda: hub.count(kind="cdn") == 1)
            pulls = [asyncio.create_task(cache.get(Listener.MIRROR, path)) for cache in others]
            engines: Any = [cache.engine for cache in others]
            await until(lambda: all(engine._fleet._counts.received["peer"] > 0 for engine in engines))
            source: Any = outcome
            await source.source.close()
        assert [await each for each in pulls] == [(200, LAYER)] * 2
        assert hub.count(kind="cdn", method="GET") == 2
        hub.faults.remove(fault)


async def test_range_is_never_answered_with_wrong_bytes_of_the_bucket(
    hub: Hub, bucket: MemoryStore, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v2/{REPO}/blobs/{image.layers[0]}"
    wrong = b"E" * len(LAYER)
    async with fleet.node(hub, tmp_path / "streams", max_blob=1 << 20) as cache:
        await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1")
        bucket.put(names.blob(Digest.parse(image.layers[0])), wrong)
        assert await cache.get(Listener.MIRROR, path, range="bytes=100-199") == (206, LAYER[100:200])
        with pytest.raises(BadUpstream, match="digest"):
            await cache.get(Listener.MIRROR, path, range="bytes=0-")
        assert await cache.get(Listener.MIRROR, path, range="bytes=0-") == (206, LAYER)
    bucket.put(names.blob(Digest.parse(image.layers[0])), wrong)
    async with fleet.node(hub, tmp_path / "fills") as cache:
        monkeypatch.setattr(cached_blobs, "FAR_AHEAD", 1 << 16)
        await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1")
        gate = asyncio.Event()
        receive = BucketTransfer.receive

        async def wait(transfer: BucketTransfer, consume: Consume) -> bool:
            await gate.wait()
            return await receive(transfer, consume)

        monkeypatch.setattr(BucketTransfer, "receive", wait)
        ahead = await cache.get(Listener.MIRROR, path, range="bytes=2000000-2000099")
        gate.set()
        assert ahead == (206, LAYER[2_000_000:2_000_100])
