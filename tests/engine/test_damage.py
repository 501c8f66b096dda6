"""Stored content that does not match its digest is moved to the quarantine, reported, and fetched again."""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener
from hubcache.store.file_check import PIECE
from hubcache.store.scrub import Scrub
from hubcache.store.store import Store
from hubcache.store.stored_blob import open_regular
from support.damage import LAYER, REPO, blob_file, can_open, damage_manifest, flip_bit, quarantined_files
from support.engine import running
from support.standin import Hub, random_bytes
from support.stores import files_below, opened_store, put_blob, put_image

# -- blobs


async def test_blob_with_a_required_check_is_verified_once_and_served(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        store.inspector.require_check(digest)
        assert await can_open(store, digest)
        assert store.inspector.required == ()


async def test_damaged_blob_is_quarantined_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        path = blob_file(tmp_path)
        flip_bit(path, len(LAYER) - 1)
        bad = path.read_bytes()
        store.inspector.require_check(digest)
        assert not await can_open(store, digest)
        assert not store.has(digest)
        assert quarantined_files(tmp_path) == [bad]
        assert store.usage.used == store.usage.quarantined > len(LAYER)
        assert store.damage.count == 1
        assert store.damage.last is not None
        assert (store.damage.last.digest, store.damage.last.path) == (digest, path)
        [line] = [record.getMessage() for record in caplog.records]
        assert str(digest) in line
        assert str(path) in line
        await put_blob(store, LAYER)
        assert await can_open(store, digest)
    async with opened_store(tmp_path) as store:
        assert store.usage.quarantined > len(LAYER)


async def test_usage_does_not_change_while_a_blob_is_quarantined(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        flip_bit(blob_file(tmp_path))
        store.inspector.require_check(digest)
        usages: list[int] = []
        store.index.on_change = lambda: usages.append(store.usage.used)
        before = store.usage.used
        assert not await can_open(store, digest)
        assert set(usages) == {before}


async def test_file_too_large_for_the_quarantine_is_not_reported_as_kept(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        store.capacity.max_bytes = 5 * len(LAYER)
        flip_bit(blob_file(tmp_path))
        store.inspector.require_check(digest)
        assert not await can_open(store, digest)
        assert store.damage.last is not None
        assert store.damage.last.kept is None
        assert quarantined_files(tmp_path) == []
        assert store.usage.used == store.usage.quarantined == 0


async def test_concurrent_opens_share_one_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        read_pieces: list[int] = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda *which: read_pieces.append(which[2]) or pread(*which))
        store.inspector.require_check(digest)
        assert all(await asyncio.gather(*(_opens(store, digest) for _ in range(10))))
        assert sorted(read_pieces) == [PIECE * number for number in range(4)]


async def _opens(store: Store, digest: Digest) -> bool:
    blob = await store.open_blob(digest)
    if blob is not None:
        blob.close()
    return blob is not None


async def test_touched_blob_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        blob_file(tmp_path).touch()
        verified: list[Path] = []
        verify = store.inspector.verify

        async def counted(path: Path, digest: Digest, size: int) -> None:
            verified.append(path)
            await verify(path, digest, size)

        monkeypatch.setattr(store.inspector, "verify", counted)
        for _ in range(3):
            assert await can_open(store, digest)
        assert len(verified) == 1


async def test_suspect_blob_is_not_verified_again_within_an_hour(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        store.inspector.suspect(digest)
        assert store.inspector.required == (digest,)
        assert await can_open(store, digest)
        store.inspector.suspect(digest)
        assert store.inspector.required == ()
        store.inspector.require_check(digest)
        assert store.inspector.required == (digest,)


@pytest.mark.parametrize("kind", ["fifo", "socket", "link", "directory"])
async def test_file_of_another_type_is_removed_without_blocking(tmp_path: Path, kind: str) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        path = blob_file(tmp_path)
        content = tmp_path / "content"
        path.rename(content)
        create(path, kind, content)
        async with asyncio.timeout(10):
            assert not await can_open(store, digest)
        assert path not in files_below(tmp_path / "store")
        assert store.damage.count == 1
        await put_blob(store, LAYER)
        assert await can_open(store, digest)


def create(path: Path, kind: str, content: Path) -> None:
    """Create something other than a regular file at this path."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(content)
    elif kind == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            folder = os.open(path.parent, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{folder}/{path.name[:60]}")
            (path.parent / path.name[:60]).rename(path)
            os.close(folder)


async def test_blob_that_is_evicted_while_it_is_opened_is_not_reported_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_store(tmp_path) as store:
        digests = [await put_blob(store, random_bytes(1000, number)) for number in range(20)]
        removing = [asyncio.create_task(store.remove(digest)) for digest in digests]
        while not all(task.done() for task in removing):
            for digest in digests:
                await can_open(store, digest)
            await asyncio.sleep(0)
        assert not any([await can_open(store, digest) for digest in digests])
        assert store.damage.count == 0
        assert caplog.records == []


async def test_check_stays_required_when_a_damaged_blob_could_not_be_quarantined(tmp_path: Path) -> None:
    """Meanwhile another task evicts the blob, and in the end keeps it."""
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        flip_bit(blob_file(tmp_path))
        store.inspector.require_check(digest)
        victim = store.capacity.retention.purge(digest, 0.0)
        assert victim is not None
        scrub = Scrub(store, pytest.fail)
        await scrub.step()
        store.capacity.keep(victim.key)
        assert not await can_open(store, digest)
        assert store.damage.count == 1
        store.inspector.require_check(digest)
        await scrub.step()
        assert store.inspector.required == ()


async def test_file_of_another_type_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)


# -- manifests


async def test_damaged_manifest_is_not_returned_and_is_quarantined(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, _ = await put_image(store, b"layer")
        damage_manifest(tmp_path)
        assert store.manifest(image) is None
        await store.maintain()
        assert not store.has(image)
        assert store.damage.count == 1
        [kept] = quarantined_files(tmp_path)
        assert b'"Layers"' in kept


async def test_damaged_manifest_is_fetched_again_at_the_first_request(hub: Hub, tmp_path: Path) -> None:
    image = hub.image(REPO, "1")
    path = f"/v2/{REPO}/manifests/1"
    async with running(hub, tmp_path / "store") as cache:
        assert await cache.get(Listener.MIRROR, path) == (200, image.manifest)
        damage_manifest(tmp_path / "store")
        assert await cache.get(Listener.MIRROR, path) == (200, image.manifest)
        await cache.engine.store.maintain()
        hub.reset_log()
        assert await cache.get(Listener.MIRROR, path) == (200, image.manifest)
        assert hub.count() == 0
