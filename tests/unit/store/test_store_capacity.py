"""The store: the cap on its size, admission and eviction."""

import asyncio
import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest
from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored, StorageError
from hubcache.oci.media import OCI_MANIFEST
from hubcache.store.capacity import ALLOWANCE
from hubcache.store.usage import size_on_disk
from support.standin import random_bytes
from support.stores import MIB, blob_files, bytes_on_disk, manifest_of, opened_store, put_blob, put_image

CAPACITY = ALLOWANCE + 2 * MIB
"""A capacity with somewhat less than 2 MiB for content; the rest is for the index."""


async def test_content_larger_than_the_capacity_is_refused_without_eviction(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAPACITY) as store:
        digest = await put_blob(store, b"layer")
        with pytest.raises(NotStored, match="hubcache_size"):
            await store.stage(Digest.of(b"big"), CAPACITY)
        assert store.has(digest)
        assert store.usage.reserved == 0


async def test_content_with_the_fewest_requests_is_evicted(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAPACITY) as store:
        _, [unpopular] = await put_image(store, random_bytes(700_000, "unpopular"))
        _, [popular] = await put_image(store, random_bytes(700_000, "popular"))
        for digest in (unpopular, popular, popular):
            store.popularity.count_request(digest)
        new = random_bytes(700_000, "new")
        for _ in range(3):
            store.popularity.count_request(Digest.of(new))
        await put_blob(store, new)
        assert [store.has(digest) for digest in (unpopular, popular, Digest.of(new))] == [False, True, True]
        assert [removal.eviction.key for removal in store.capacity.history] == [unpopular]
        assert store.capacity.removed == 1


async def test_layer_that_a_popular_image_shares_is_not_evicted(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAPACITY) as store:
        shared = random_bytes(500_000, "shared")
        _, [base, own] = await put_image(store, shared, random_bytes(500_000, "unpopular"), note="unpopular")
        await put_image(store, shared, note="popular")
        for digest in (base, own, *[base] * 20):  # a pull of either image requests the base
            store.popularity.count_request(digest)
        new = random_bytes(1_200_000, "new")
        for _ in range(10):
            store.popularity.count_request(Digest.of(new))
        await put_blob(store, new)
        assert [store.has(digest) for digest in (own, base)] == [False, True]


async def test_content_with_too_few_requests_is_refused(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAPACITY) as store:
        digest = await put_blob(store, random_bytes(1_200_000))
        with pytest.raises(NotStored, match="often enough"):
            await store.stage(Digest.of(b"new"), 1_200_000)
        assert store.has(digest)
        assert store.usage.reserved == 0


async def test_blob_that_is_being_read_is_not_evicted(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAPACITY) as store:
        digest = await put_blob(store, random_bytes(1_200_000))
        store.popularity.ensure_admitted(Digest.of(b"new"))
        blob = await store.open_blob(digest)
        assert blob is not None
        with pytest.raises(StorageError, match="in use"):
            await store.stage(Digest.of(b"new"), 1_200_000)
        assert store.usage.used == size_on_disk(1_200_000)
        blob.close()
        store.finish(await store.stage(Digest.of(b"new"), 1_200_000))
        assert not store.has(digest)


async def test_staged_content_counts_towards_the_cap(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAPACITY) as store:
        first = await store.stage(Digest.of(b"a"), 1_200_000)
        with pytest.raises(StorageError):
            await store.stage(Digest.of(b"b"), 1_200_000)
        store.finish(first)
        store.finish(await store.stage(Digest.of(b"b"), 1_200_000))


async def test_content_of_unknown_size_is_reserved_in_steps(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 32 * MIB) as store:
        staged = await store.stage(Digest.of(b"layer"), 0)
        await store.extend(staged, 1)
        assert store.usage.used == staged.reserved >= 1
        await store.extend(staged, 10 * MIB)
        assert store.usage.used == staged.reserved >= 10 * MIB
        with pytest.raises(StorageError):
            await store.extend(staged, 40 * MIB)
        staged.write(b"layer")
        await store.commit(staged)
        store.finish(staged)
        assert store.usage.used == size_on_disk(5)


async def test_lowered_capacity_applies_to_the_next_write(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 16 * MIB) as store:
        for number in range(8):
            await put_blob(store, random_bytes(500_000, number))
        store.capacity.max_bytes = CAPACITY
        new = random_bytes(500_000, "new")
        store.popularity.ensure_admitted(Digest.of(new))
        await put_blob(store, new)
        assert bytes_on_disk(tmp_path) <= CAPACITY


async def test_cap_holds_when_large_manifests_are_stored(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 16 * MIB) as store:
        for number in range(8):
            body = manifest_of(note=f"{number}" * (2 * MIB))
            with contextlib.suppress(StorageError):  # it may be refused or evicted
                await store.put_manifest(Digest.of(body), ManifestRecord(OCI_MANIFEST, body))
            assert bytes_on_disk(tmp_path) <= 16 * MIB


async def test_space_is_reserved_only_after_the_evicted_file_is_removed(tmp_path: Path) -> None:
    """The writer thread, which removes evicted files, may be busy with a long sync."""
    async with opened_store(tmp_path, CAPACITY) as store:
        await put_blob(store, random_bytes(1_900_000, "old"))
        store.popularity.ensure_admitted(Digest.of(b"evicting"))
        store.popularity.ensure_admitted(Digest.of(b"other"))
        busy = threading.Event()
        slow = asyncio.ensure_future(store.index.write(lambda: busy.wait(5)))
        evicting = asyncio.ensure_future(store.stage(Digest.of(b"evicting"), 1_000_000))
        await asyncio.sleep(0.02)
        other = asyncio.ensure_future(store.stage(Digest.of(b"other"), 900_000))
        await asyncio.sleep(0.02)
        if other.done():
            other.result().write(random_bytes(900_000))
        over = bytes_on_disk(tmp_path) + 1_000_000 - CAPACITY
        busy.set()
        for staged in await asyncio.gather(evicting, other):
            store.finish(staged)
        await slow
        assert over <= 0, f"{over} bytes more than the capacity were on disk or promised"


async def test_cap_holds_during_sixteen_concurrent_writes(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAPACITY) as store:

        async def fill(number: int) -> bool:
            try:
                await put_blob(store, random_bytes(100_000 + number * 20_000, number))
            except StorageError:
                return False
            finally:
                assert bytes_on_disk(tmp_path) <= CAPACITY
            return True

        assert any(await asyncio.gather(*(fill(number) for number in range(16))))
        assert store.usage.reserved == 0
        assert store.usage.used == sum(size_on_disk(path.stat().st_size) for path in blob_files(tmp_path))


async def test_blob_is_kept_when_there_are_no_descriptors_to_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", _no_descriptors)
            with pytest.raises(StorageError, match="Too many open files"):
                await store.open_blob(digest)
        blob = await store.open_blob(digest)
        assert blob is not None
        blob.close()


def _no_descriptors(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
