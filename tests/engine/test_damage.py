"""Stored content that is not what its digest says is put aside, told, and fetched anew."""

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
from support.damage import LAYER, REPO, blob_file, flip, opens, quarantined, spoil_manifest
from support.engine import running
from support.standin import Hub, random_bytes
from support.stores import files_below, opened_store, put_blob, put_image

# -- blobs


async def test_doubted_blob_is_verified_once_and_served(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        store.inspector.require_check(digest)
        assert await opens(store, digest)
        assert store.inspector.required == ()


async def test_doubted_blob_that_is_damaged_is_put_aside_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        path = blob_file(tmp_path)
        flip(path, len(LAYER) - 1)
        bad = path.read_bytes()
        store.inspector.require_check(digest)
        assert not await opens(store, digest)
        assert not store.has(digest)
        assert quarantined(tmp_path) == [bad]
        assert store.usage.used == store.usage.quarantined > len(LAYER)
        assert store.damage.count == 1
        assert store.damage.last is not None
        assert (store.damage.last.digest, store.damage.last.path) == (digest, path)
        [line] = [record.getMessage() for record in caplog.records]
        assert str(digest) in line
        assert str(path) in line
        await put_blob(store, LAYER)
        assert await opens(store, digest)
    async with opened_store(tmp_path) as store:
        assert store.usage.quarantined > len(LAYER)


async def test_what_is_put_aside_counts_all_the_time(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        flip(blob_file(tmp_path))
        store.inspector.require_check(digest)
        seen: list[int] = []
        store.index.on_change = lambda: seen.append(store.usage.used)
        before = store.usage.used
        assert not await opens(store, digest)
        assert set(seen) == {before}


async def test_file_that_a_smaller_cap_leaves_no_room_for_is_not_said_to_be_kept(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        store.capacity.max_bytes = 5 * len(LAYER)
        flip(blob_file(tmp_path))
        store.inspector.require_check(digest)
        assert not await opens(store, digest)
        assert store.damage.last is not None
        assert store.damage.last.kept is None
        assert quarantined(tmp_path) == []
        assert store.usage.used == store.usage.quarantined == 0


async def test_many_who_wait_for_one_verification_cost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        read_pieces: list[int] = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda *which: read_pieces.append(which[2]) or pread(*which))
        store.inspector.require_check(digest)
        assert all(await asyncio.gather(*(_can_open(store, digest) for _ in range(10))))
        assert sorted(read_pieces) == [PIECE * number for number in range(4)]


async def _can_open(store: Store, digest: Digest) -> bool:
    blob = await store.open_blob(digest)
    if blob is not None:
        blob.close()
    return blob is not None


async def test_touched_blob_is_verified_only_when_it_was_touched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            assert await opens(store, digest)
        assert len(verified) == 1


async def test_blob_that_was_found_good_is_not_verified_on_suspicion_for_an_hour(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        store.inspector.suspect(digest)
        assert store.inspector.required == (digest,)
        assert await opens(store, digest)
        store.inspector.suspect(digest)
        assert store.inspector.required == ()
        store.inspector.require_check(digest)
        assert store.inspector.required == (digest,)


@pytest.mark.parametrize("kind", ["fifo", "socket", "link", "directory"])
async def test_what_is_no_regular_file_is_put_aside_without_waiting_for_it(tmp_path: Path, kind: str) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        path = blob_file(tmp_path)
        content = tmp_path / "content"
        path.rename(content)
        place(path, kind, content)
        async with asyncio.timeout(10):
            assert not await opens(store, digest)
        assert path not in files_below(tmp_path / "store")
        assert store.damage.count == 1
        await put_blob(store, LAYER)
        assert await opens(store, digest)


def place(path: Path, kind: str, content: Path) -> None:
    """Something that is no file, in the place of one."""
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


async def test_blob_that_is_evicted_while_it_is_opened_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_store(tmp_path) as store:
        digests = [await put_blob(store, random_bytes(1000, number)) for number in range(20)]
        removing = [asyncio.create_task(store.remove(digest)) for digest in digests]
        while not all(task.done() for task in removing):
            for digest in digests:
                await opens(store, digest)
            await asyncio.sleep(0)
        assert not any([await opens(store, digest) for digest in digests])
        assert store.damage.count == 0
        assert caplog.records == []


async def test_damage_that_could_not_be_put_aside_is_still_doubted(tmp_path: Path) -> None:
    """Somebody else is removing it, and may yet keep it."""
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        flip(blob_file(tmp_path))
        store.inspector.require_check(digest)
        victim = store.capacity.retention.purge(digest, 0.0)
        assert victim is not None
        scrub = Scrub(store, pytest.fail)
        await scrub.step()
        store.capacity.keep(victim.key)
        assert not await opens(store, digest)
        assert store.damage.count == 1
        store.inspector.require_check(digest)
        await scrub.step()
        assert store.inspector.required == ()


async def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)


# -- manifests


async def test_manifest_that_is_damaged_is_not_given_and_put_aside(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, _ = await put_image(store, b"layer")
        spoil_manifest(tmp_path)
        assert store.manifest(image) is None
        await store.maintain()
        assert not store.has(image)
        assert store.damage.count == 1
        [kept] = quarantined(tmp_path)
        assert b'"Layers"' in kept


async def test_damaged_manifest_is_fetched_anew_at_the_first_request(hub: Hub, tmp_path: Path) -> None:
    image = hub.image(REPO, "1")
    path = f"/v2/{REPO}/manifests/1"
    async with running(hub, tmp_path / "store") as cache:
        assert await cache.get(Listener.MIRROR, path) == (200, image.manifest)
        spoil_manifest(tmp_path / "store")
        assert await cache.get(Listener.MIRROR, path) == (200, image.manifest)
        await cache.engine.store.maintain()
        hub.reset_log()
        assert await cache.get(Listener.MIRROR, path) == (200, image.manifest)
        assert hub.count() == 0
