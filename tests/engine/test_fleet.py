"""Caches that share a bucket: they find each other, share what one of them has fetched, and work alone if they must."""

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import obstore
import pytest
from hubcache.control.errors import Refused
from hubcache.fleet import fleet as fleet_module
from hubcache.fleet import keys as bucket_keys
from hubcache.fleet import leaders, membership
from hubcache.fleet.bucket import Bucket
from hubcache.fleet.leases import Lease
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ConfigError
from hubcache.oci.image_name import ImageName
from hubcache.oci.registry import HUB_HOST
from hubcache.serve.messages import Change, Listener
from obstore.store import MemoryStore
from support import fleet_engines as fleet
from support.engine import Cache, running
from support.fleet import CLOSED_PORT
from support.standin import Hub, Image, random_bytes
from support.users import until

REPO = "library/debian"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """The bucket of all nodes of a test, which find each other at once."""
    monkeypatch.setattr(membership, "HEARTBEAT_SECONDS", 0.05)
    store = MemoryStore()
    fleet.use_store(monkeypatch, store)
    return store


def keys(store: MemoryStore, prefix: str) -> list[str]:
    return [entry["path"] for page in store.list(prefix) for entry in page]


def status(cache: Cache) -> dict[str, Any]:
    found = cache.engine.report.fleet()
    assert found is not None
    return found


async def test_nodes_find_each_other_and_leave(hub: Hub, bucket: MemoryStore, tmp_path: Path) -> None:
    async with fleet.nodes(hub, tmp_path, 2) as caches:
        await until(lambda: all(len(status(each)["nodes"]) == 2 for each in caches))
        seen = [status(each)["nodes"] for each in caches]
        assert seen[0][0]["is_own"]
        assert not seen[0][1]["is_own"]
        assert {node["id"] for node in seen[0]} == {node["id"] for node in seen[1]}
        assert all(status(each)["problem"] is None for each in caches)
        addresses = {node["address"] for node in seen[0]}
        assert all(address.startswith("http://127.0.0.1:") for address in addresses)
    assert keys(bucket, "node") == []
    assert keys(bucket, "lease") == []


async def test_bucket_that_hangs_delays_a_stop_by_a_short_time(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_LEAVE_SECONDS", 0.05)
    async with fleet.nodes(hub, tmp_path, 1) as (cache,):
        node = cache.engine._fleet
        assert node is not None
        await until(lambda: keys(bucket, "node") != [])

        async def hang(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            for name in ("put_async", "get_async", "head_async", "delete_async"):
                patch.setattr(obstore, name, hang)
            async with asyncio.timeout(2):
                await cache.engine.stop_background_work()
        assert node._blobs.for_peers.is_stopping
        assert node._bucket.closed_because == "this node is stopping"
        assert not cache.engine.is_uploading


async def test_all_parts_of_a_node_are_closed_when_one_fails(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(hub, tmp_path, 1) as (cache,):
        node = cache.engine._fleet
        assert node is not None
        lease = await node._leases.acquire("blob/a")
        assert isinstance(lease, Lease)

        async def fail() -> None:
            raise ArithmeticError("defect")

        with monkeypatch.context() as patch:
            for part in (node._sweeper, node._uploads):
                patch.setattr(part, "close", fail)
            with pytest.raises(ArithmeticError):
                await node.close()
        assert keys(bucket, "lease") == []
        assert node._connection.listener.fileno() == -1
        await node._sweeper.close()
        await node._membership.close()


async def test_node_that_joins_is_known_to_the_others_at_once(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next heartbeat: a push in this time must reach it."""
    monkeypatch.setattr(membership, "HEARTBEAT_SECONDS", 3600.0)
    async with fleet.nodes(hub, tmp_path, 2) as caches:
        await until(lambda: all(len(status(each)["nodes"]) == 2 for each in caches))


async def test_node_works_alone_while_the_bucket_does_not_answer(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = hub.image(REPO, "1")
    fleet.use_store(monkeypatch, CLOSED_PORT)
    async with fleet.node(hub, tmp_path / "a") as cache:
        assert "working alone until the bucket answers: s3://caches/test" in caplog.text
        assert "secret" not in caplog.text
        assert await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1") == (200, image.manifest)
        assert status(cache)["problem"]
        assert len(cache.engine.report.snapshot(public=False)["problems"]) == 1
        assert "bucket" in cache.engine.report.snapshot(public=True)["problems"][0]
        assert cache.engine.report.snapshot(public=True)["fleet"] is None


def size_of(image: Image, hub: Hub) -> int:
    """Return the bytes of an image's config and layers."""
    blobs = hub.memory.repository(image.repo).blobs
    return sum(blobs[digest].size for digest in set(image.blobs))


async def pull(cache: Cache, image: Image, listener: Listener = Listener.MIRROR) -> None:
    """Pull an image, and compare all that was received."""
    assert await cache.get(listener, f"/v2/{image.repo}/manifests/{image.tag}") == (200, image.manifest)
    for digest in image.blobs:
        status, body = await cache.get(listener, f"/v2/{image.repo}/blobs/{digest}")
        assert (status, str(Digest.of(body))) == (200, digest)


async def test_second_node_needs_no_request_to_the_registry(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaders, "_LEADING_SECONDS", 0.0)  # the first node is not asked for the blobs
    image = hub.image(REPO, "1", [random_bytes(200_000, "layer")])
    async with fleet.nodes(hub, tmp_path, 2) as (first, second):
        await pull(first, image)
        await until(lambda: len(keys(bucket, "blob")) == len(image.blobs))
        await until(lambda: keys(bucket, "lease") == [])
        hub.reset_log()
        await pull(second, image)
        assert [record.path for record in hub.requests() if "token" not in record.path] == []
        tiers = status(second)["tiers"]
        assert (tiers["bucket"], tiers["upstream"]) == (size_of(image, hub), 0)
        before = status(second)["requests"]["get"]
        await pull(second, image)
        assert status(second)["requests"]["get"] == before, "a warm pull needs no request to the bucket"
        assert status(first)["uploads"]["stored"] == len(image.blobs)
    assert keys(bucket, "lease") == []


def assert_each_blob_fetched_once(image: Image, hub: Hub, caches: Sequence[Cache]) -> None:
    """Assert that the registry sent each blob of an image once to all caches together.

    A node that has no token yet sends its first request without one. The registry refuses that request with 401, and
    sends no blob.
    """
    requests = hub.requests(kind="blob", method="GET")
    assert {record.token for record in requests if record.status == 401} <= {"none"}
    fetched = Counter(record.path for record in requests if record.status != 401)
    assert fetched == {f"/v2/{image.repo}/blobs/{digest}": 1 for digest in image.blobs}
    assert hub.count(kind="cdn", method="GET") == len(image.blobs)
    tiers = [status(cache)["tiers"] for cache in caches]
    assert sum(each["upstream"] for each in tiers) == size_of(image, hub)


async def test_pull_through_all_nodes_at_once_fetches_each_blob_once(
    hub: Hub, bucket: MemoryStore, tmp_path: Path
) -> None:
    image = hub.image(REPO, "1", [random_bytes(3 << 20, f"layer {number}") for number in range(3)])
    async with fleet.nodes(hub, tmp_path, 3) as caches:
        await asyncio.gather(*(pull(cache, image) for cache in caches))
        assert_each_blob_fetched_once(image, hub, caches)


async def test_nodes_without_a_token_fetch_each_blob_once(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node that fetched the manifest, and has a token, does not fetch the blobs."""
    monkeypatch.setattr(leaders, "_LEADING_SECONDS", 0.0)
    image = hub.image(REPO, "1", [random_bytes(200_000, f"layer {number}") for number in range(3)])
    async with fleet.nodes(hub, tmp_path, 3) as caches:
        assert (await caches[0].get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
        await asyncio.gather(*(pull(cache, image) for cache in caches[1:]))
        assert hub.count(kind="blob", method="GET", status=401) > 0
        assert_each_blob_fetched_once(image, hub, caches)


async def test_push_through_one_node_is_seen_by_the_others(hub: Hub, bucket: MemoryStore, tmp_path: Path) -> None:
    old = hub.image(REPO, "1", [b"old"])
    async with fleet.nodes(hub, tmp_path, 2) as (first, second):
        await until(lambda: len(status(first)["nodes"]) == 2)
        await pull(first, old)
        await pull(second, old)
        new = hub.image(REPO, "1", [b"new"])
        assert await second.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1") == (200, old.manifest)
        await first.engine.content_changed(first.settings.registries[0], Change(REPO, "1"))
        await pull(second, new)
        await pull(first, new)


async def test_command_shows_the_leases_of_all_nodes(hub: Hub, bucket: MemoryStore, tmp_path: Path) -> None:
    async with fleet.node(hub, tmp_path / "a") as cache:
        engine: Any = cache.engine
        lease = await engine._fleet._leases.acquire("blob/sha256:aa")
        assert isinstance(lease, Lease)
        bucket.put("lease/sweep", b'{"format": 2}')
        shown = await cache.engine.control.commands.fleet.show()
        leases = {each["name"]: each for each in shown["leases"]}
        assert leases["blob/sha256:aa"]["node"] == status(cache)["node"]
        assert leases["sweep"]["node"] is None
        assert not any(each["has_expired"] for each in leases.values())
        assert shown["cost"]["dollars"] > 0
        bucket.delete("lease/sweep")
    assert keys(bucket, "lease") == []


async def test_purge_removes_content_from_the_bucket(hub: Hub, bucket: MemoryStore, tmp_path: Path) -> None:
    image = hub.image(REPO, "1")
    digest = Digest.of(image.manifest)
    async with fleet.node(hub, tmp_path / "a") as cache:
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
        found = [bucket_keys.tag(HUB_HOST, REPO, "1"), bucket_keys.manifest(HUB_HOST, REPO, digest)]
        await until(lambda: {*found} <= {*keys(bucket, "tag"), *keys(bucket, "manifest")})
        kept = bucket_keys.tag(HUB_HOST, REPO, "2")
        bucket.put(kept, b"{}")
        result = await cache.engine.control.commands.purge.image(ImageName.parse("debian:1"))
        assert result["removed_from_bucket"]
    assert keys(bucket, "manifest") == []
    assert keys(bucket, "tag") == [kept]


async def test_cache_without_a_bucket_has_no_fleet(hub: Hub, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store") as cache:
        assert cache.engine.report.snapshot(public=False)["fleet"] is None
        with pytest.raises(Refused, match="works alone"):
            await cache.engine.control.commands.fleet.show()


async def test_bucket_that_breaks_promises_is_refused_at_start(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(self: Bucket, key: str, value: bytes) -> str:
        return await self.put(key, value)

    monkeypatch.setattr(Bucket, "create", create)
    with pytest.raises(ConfigError, match=r"^hubcache_bucket: .* racing creations"):
        async with fleet.node(hub, tmp_path / "a"):
            pass
    async with running(hub, tmp_path / "a"):  # the store of the engine that did not start was closed
        assert keys(bucket, "node") == []


async def test_address_that_is_in_use_is_refused(hub: Hub, bucket: MemoryStore, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = other.getsockname()[:2]
        with pytest.raises(ConfigError, match=r"hubcache_peer_listen: cannot listen on 127\.0\.0\.1:"):
            async with fleet.node(hub, tmp_path / "a", peer_listen=listen):
                pass
