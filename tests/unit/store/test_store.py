"""The store: content, and the cap on its size."""

import asyncio
import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored, StorageError
from hubcache.oci.media import OCI_MANIFEST
from hubcache.store.capacity import ALLOWANCE
from hubcache.store.usage import size_on_disk
from support.standin import random_bytes
from support.stores import MIB, blob_files, bytes_on_disk, files_below, manifest_of, opened_store, put_blob, put_image

HUB = "registry-1.docker.io"
CAPACITY = ALLOWANCE + 2 * MIB
"""A capacity with somewhat less than 2 MiB for content; the rest is for the index."""


def descriptors() -> list[Path]:
    return list(Path("/proc/self/fd").iterdir())


# -- content


async def test_committed_content_survives_a_restart(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, [layer] = await put_image(store, b"layer")
        record = store.manifest(image)
        used = store.usage.used
    async with opened_store(tmp_path) as store:
        assert store.has(layer)
        assert store.manifest(image) == record
        blob = await store.open_blob(layer)
        assert blob is not None
        assert os.pread(blob.fd, 100, 0) == b"layer"
        blob.close()
        assert store.usage.used == used
        assert store.usage.children == {image: (layer,)}


async def test_staged_file_can_be_opened_by_its_name_until_staging_ends(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        staged = await store.stage(Digest.of(b"layer"), 5)
        staged.write(b"layer")
        await store.commit(staged)
        assert staged.path.read_bytes() == b"layer"
        store.finish(staged)
        assert not staged.path.exists()
        assert [path.read_bytes() for path in blob_files(tmp_path)] == [b"layer"]


async def test_slow_sync_of_content_does_not_delay_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, synced = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _: begun.set() or synced.wait(30))
    async with opened_store(tmp_path) as store:
        putting = asyncio.create_task(put_blob(store, b"layer"))
        try:
            assert await asyncio.to_thread(begun.wait, 30)
            await asyncio.wait_for(store.registries.put_challenge(HUB, "Bearer realm=x"), 10)
            assert not putting.done()
        finally:
            synced.set()
        assert store.has(await putting)


async def test_uncommitted_content_is_not_stored(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = Digest.of(b"layer")
        staged = await store.stage(digest, 5)
        staged.write(b"layer")
        assert not store.has(digest)
        assert await store.open_blob(digest) is None
        store.finish(staged)
        assert store.usage.used == 0
        assert files_below(tmp_path / "staging") == []


async def test_blobs_and_manifests_are_distinguished(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, [layer] = await put_image(store, b"layer")
        assert (store.blob_size(layer), store.blob_size(image)) == (5, None)
        assert store.manifest(layer) is None
        assert await store.open_blob(image) is None
        assert store.has(image)


async def test_removed_blob_stays_readable_while_it_is_open(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        blob = await store.open_blob(digest)
        assert blob is not None
        await store.remove(digest)
        assert await store.open_blob(digest) is None
        assert os.pread(blob.fd, 100, 0) == b"layer"
        blob.close()
        assert blob_files(tmp_path) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "a directory"])
async def test_blob_whose_file_is_missing_or_changed_is_removed(tmp_path: Path, damage: str) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer" * 100)
        [path] = blob_files(tmp_path)
        if damage == "truncated":
            os.truncate(path, 499)
        elif damage == "longer":
            os.truncate(path, 501)
        else:
            path.unlink()
            if damage == "a directory":
                path.mkdir()
        assert await store.open_blob(digest) is None
        assert not store.has(digest)
        assert store.usage.stored == 0
        await put_blob(store, b"layer" * 100)
        blob = await store.open_blob(digest)
        assert blob is not None
        blob.close()


async def test_blob_that_was_changed_is_not_served_after_a_restart(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer" * 100)
    [path] = blob_files(tmp_path)
    path.write_bytes(b"LAYER" * 100)
    async with opened_store(tmp_path) as store:
        blob = await store.open_blob(digest)
        content = b"" if blob is None else os.pread(blob.fd, 1000, 0)
        if blob is not None:
            blob.close()
        assert content == b"" or digest.matches(content)


async def test_blob_that_is_fetched_again_while_its_old_file_is_verified_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        verify, checked, verified = store.inspector.check, asyncio.Event(), asyncio.Event()

        async def slow(*which: Any) -> None:
            try:
                await verify(*which)
            finally:
                checked.set()
                await verified.wait()

        [path] = blob_files(tmp_path)
        path.write_bytes(b"wrong")
        monkeypatch.setattr(store.inspector, "check", slow)
        opening = asyncio.create_task(store.open_blob(digest))
        await checked.wait()
        await store.remove(digest)
        await put_blob(store, b"layer")
        verified.set()
        blob = await opening
        assert blob is not None
        assert os.pread(blob.fd, 100, 0) == b"layer"
        blob.close()
        assert store.has(digest)


async def test_cancelled_open_leaves_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")

        async def never(*_: object) -> None:
            await asyncio.Future()

        monkeypatch.setattr(store.inspector, "check", never)
        before = len(descriptors())
        opening = asyncio.create_task(store.open_blob(digest))
        await asyncio.sleep(0)
        assert len(descriptors()) == before + 1
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert len(descriptors()) == before


async def test_content_stored_as_manifest_and_blob_is_removed_as_both(tmp_path: Path) -> None:
    """Some registries also serve a manifest's bytes as a blob."""
    async with opened_store(tmp_path) as store:
        body = manifest_of(note="x" * 1000)
        digest = await put_blob(store, body)
        await store.put_manifest(digest, ManifestRecord(OCI_MANIFEST, body))
        assert store.manifest(digest) is not None
        await store.remove(digest)
        assert store.usage.used == 0
        assert blob_files(tmp_path) == []


# -- the cap


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
