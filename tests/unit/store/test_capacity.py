"""The capacity of the store: cap, admission, pins and expiry."""

import asyncio
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
from hubcache.decide.eviction import Reason
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored
from hubcache.oci.image_name import ImageName
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.store.store import Store
from support.engine import running
from support.standin import Hub, random_bytes
from support.stores import MIB, bytes_on_disk, opened_store, put_blob

CAP = 24 * MIB


def blob(number: int, size: int = 4 * MIB) -> bytes:
    return random_bytes(size, seed=number)


async def test_popular_content_is_not_evicted_for_content_requested_once(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        popular = [await put_blob(store, blob(n)) for n in range(4)]
        for digest in popular * 3:
            store.popularity.count_request(digest)
        for n in range(10, 40):
            digest = Digest.of(blob(n))
            store.popularity.count_request(digest)
            try:
                await put_blob(store, blob(n))
            except NotStored:
                continue
        assert all(store.has(digest) for digest in popular)


async def test_full_store_admits_content_at_its_second_request(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        for n in range(5):
            store.popularity.count_request(Digest.of(blob(n)))
            await put_blob(store, blob(n))
        new = Digest.of(blob(9))
        store.popularity.count_request(new)
        with pytest.raises(NotStored):
            await put_blob(store, blob(9))
        store.popularity.count_request(new)
        await put_blob(store, blob(9))
        assert store.has(new)
        removal = store.capacity.history[-1]
        assert removal.eviction.reason is Reason.SPACE
        assert not store.has(removal.eviction.key)


async def test_committed_content_is_counted_once_also_before_its_staging_ends(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        data = blob(0)
        staged = await store.stage(Digest.of(data), len(data))
        staged.write(data)
        await store.commit(staged)
        assert store.usage.used == len(data)
        store.finish(staged)
        assert store.usage.used == len(data)


async def test_cap_holds_on_disk_while_sixteen_blobs_are_fetched_at_once(hub: Hub, tmp_path: Path) -> None:
    blobs = [hub.blob("library/app", blob(n, 3 * MIB)) for n in range(16)]
    worst = 0
    async with running(hub, tmp_path / "store", size=CAP) as cache:

        async def watch() -> None:
            nonlocal worst
            while True:
                worst = max(worst, bytes_on_disk(tmp_path / "store"))
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        try:
            for _ in range(2):
                answers = await asyncio.gather(
                    *(cache.get(Listener.MIRROR, f"/v2/library/app/blobs/{d}") for d in blobs)
                )
                for digest, (status, body) in zip(blobs, answers, strict=True):
                    assert status == 200
                    assert str(Digest.of(body)) == digest
        finally:
            watching.cancel()
    assert 0 < worst <= CAP


async def test_blob_is_served_without_storing_when_the_store_is_full_of_pinned_content(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pinned = hub.image("library/base", "1", layers=[blob(n) for n in range(5)])
    other = hub.image("library/app", "1", layers=[blob(n) for n in (7, 8)])
    async with running(hub, tmp_path / "store", size=CAP, pins=(ImageName.parse("base:1"),), admit_after=1) as cache:
        for image in (pinned, other, other, other):
            await cache.get(Listener.PROXY, f"/v2/{image.repo}/manifests/1")
            for digest in (image.config, *image.layers):
                status, body = await cache.get(Listener.PROXY, f"/v2/{image.repo}/blobs/{digest}")
                assert (status, str(Digest.of(body))) == (200, digest)
        await asyncio.gather(*cache.engine.fills._tasks)
        assert all(cache.engine.store.has(Digest.parse(d)) for d in (pinned.config, *pinned.layers))
        assert not any(cache.engine.store.has(Digest.parse(d)) for d in other.layers)
    warnings = [record for record in caplog.records if "pinned or in use" in record.getMessage()]
    assert len(warnings) == 1


async def test_store_shrinks_to_a_lowered_cap(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 64 * MIB) as store:
        digests = [await put_blob(store, blob(n)) for n in range(10)]
        for _ in range(3):
            store.popularity.count_request(digests[0])
        store.capacity.max_bytes = 16 * MIB
        await store.maintain()
        assert bytes_on_disk(tmp_path) <= 16 * MIB
        assert store.has(digests[0])


async def test_blob_larger_than_max_blob_is_served_without_storing(hub: Hub, tmp_path: Path) -> None:
    digest = hub.blob("library/app", blob(1))
    async with running(hub, tmp_path / "store", max_blob=1 * MIB) as cache:
        answer, body = await cache.ask(Listener.MIRROR, "GET", f"/v2/library/app/blobs/{digest}")
        assert isinstance(answer, Answer)
        assert (answer.status, answer.result, str(Digest.of(body))) == (200, Result.MISS, digest)
        assert not cache.engine.store.has(Digest.parse(digest))


async def test_store_shrinks_when_other_programs_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path, 64 * MIB) as store:
        for n in range(5):
            await put_blob(store, blob(n))
        free = namedtuple("free", "f_bavail f_frsize")
        monkeypatch.setattr(os, "statvfs", lambda _: free(1, 4096))
        store.capacity.min_free = 8 * MIB
        await store.maintain()
        assert len(store.usage.sizes) <= 3


@pytest.mark.parametrize(
    ("size", "left"), [(100 << 30, 1 << 30), (2 << 30, (2 << 30) // 20)], ids=["a big disk", "a small one"]
)
async def test_default_min_free_is_a_gigabyte_or_a_twentieth_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, left: int
) -> None:
    state = namedtuple("state", "f_bavail f_frsize f_blocks")
    async with opened_store(tmp_path, 1 << 40) as store:
        capacity = store.capacity
        monkeypatch.setattr(os, "statvfs", lambda _: state(left + 1000, 1, size))
        capacity.min_free = None
        assert capacity.limit(0) == store.usage.stored + 1000


async def test_idle_content_is_removed_and_recorded_in_the_history(tmp_path: Path) -> None:
    now = 1_000_000.0
    store = Store(tmp_path, 64 * MIB, lambda: now)
    store.open()
    old, used = await put_blob(store, blob(1)), await put_blob(store, blob(2))
    for _ in range(31):  # the policy counts a jump of the clock as one day at most
        now += 86400
        store.popularity.count_request(used)
    await store.expire()
    assert (store.has(old), store.has(used)) == (False, True)
    assert store.capacity.history[-1].eviction.reason is Reason.IDLE
    await store.close()


async def test_request_counts_survive_a_restart(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        digest = await put_blob(store, blob(1))
        for _ in range(5):
            store.popularity.count_request(digest)
        await store.maintain()
        before = store.capacity.retention.requests(digest, store._clock())
    async with opened_store(tmp_path, CAP) as store:
        assert store.capacity.retention.requests(digest, store._clock()) == pytest.approx(before, rel=1e-3)


async def test_store_without_rows_of_the_policy_can_be_opened(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        digest = await put_blob(store, blob(1))
        await store.popularity.flush()
        for key, *_ in list(store.index.opened().rows("retention/")):
            store.index.opened().delete(key)
    async with opened_store(tmp_path, CAP) as store:
        assert digest in store.capacity.retention
        assert store.capacity.retention.bytes == store.usage.stored


async def test_content_larger_than_the_cap_is_refused_at_once(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        kept = await put_blob(store, blob(1))
        with pytest.raises(NotStored):
            await store.stage(Digest.of(b"big"), CAP)
        assert store.has(kept)


async def test_request_counts_survive_a_crash_after_they_were_written(tmp_path: Path) -> None:
    """The copy has the files as they are after maintenance, which runs every few seconds, while the process still
    runs."""
    async with opened_store(tmp_path / "store") as store:
        digest = await put_blob(store, blob(1))
        for _ in range(3):
            store.popularity.count_request(digest)
        counted = store.capacity.retention.requests(digest, time.time())
        assert counted >= 3
        await store.maintain()
        shutil.copytree(tmp_path / "store", tmp_path / "after")
    async with opened_store(tmp_path / "after") as store:
        assert store.capacity.retention.requests(digest, time.time()) == pytest.approx(counted, abs=0.01)
