"""The store: content is stored whole, and survives restarts."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.oci.media import OCI_MANIFEST
from support.stores import blob_files, files_below, manifest_of, opened_store, put_blob, put_image

HUB = "registry-1.docker.io"


def descriptors() -> list[Path]:
    return list(Path("/proc/self/fd").iterdir())


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
