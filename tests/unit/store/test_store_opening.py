"""Opening and closing the store, and failures of the disk and the database."""

import errno
import fcntl
import gc
import os
import shutil
import stat
import time
from pathlib import Path

import pytest
from hubcache.decide.records import TagRecord
from hubcache.decide.retention_rows import encode_row
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError, StoreDamaged, StoreTooNew
from hubcache.store.capacity import ALLOWANCE
from hubcache.store.directory import FORMAT
from hubcache.store.index import Index
from hubcache.store.store import Store
from hubcache.store.usage import size_on_disk
from support.damage import change_rows, mark_as_killed
from support.stores import MIB, blob_files, files_below, opened_store, put_blob, put_image

NOW = time.time()
HUB = "registry-1.docker.io"
CAPACITY = ALLOWANCE + 2 * MIB
"""A capacity with somewhat less than 2 MiB for content; the rest is for the index."""


# -- failures of disk and database


def refuse(directory: Path, event: str) -> None:
    """Let statements of this kind fail in the database of a store."""
    change_rows(directory, f"CREATE TRIGGER no BEFORE {event} ON Cache BEGIN SELECT RAISE(ABORT, 'disk is full'); END")


async def test_failed_commit_leaves_neither_content_nor_file(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        assert store.problem is not None
        assert not store.has(Digest.of(b"layer"))
        assert store.usage.used == 0
        assert blob_files(tmp_path) == []


async def test_content_that_could_not_be_removed_is_counted(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        refuse(tmp_path, "DELETE")
        with pytest.raises(StorageError):
            await store.remove(digest)
        assert store.usage.used == sum(size_on_disk(path.stat().st_size) for path in blob_files(tmp_path))


async def test_problem_ends_when_writing_works_again(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        store.index.staging_failed(StorageError("no space"))
        change_rows(tmp_path, "DROP TRIGGER no")
        await put_blob(store, b"layer")
        assert store.problem is None


async def test_request_counts_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    digest = Digest.of(b"image")
    async with opened_store(tmp_path) as store:
        store.popularity.count_request(digest)
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await store.popularity.flush()
        change_rows(tmp_path, "DROP TRIGGER no")
    async with opened_store(tmp_path) as store:
        assert store.popularity.was_requested(digest)


async def test_reservation_is_released_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path) as store:

        def refuse_write(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", refuse_write)
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        assert store.usage.used == 0
        assert files_below(tmp_path / "staging") == []


async def test_row_with_a_pickle_does_not_affect_other_rows(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await store.registries.put_challenge(HUB, "Bearer realm=x")
        await store.tags.put(HUB, "library/debian", "stable", "*/*", TagRecord(Digest.of(b"m"), "a/b", 1, NOW))
    change_rows(tmp_path, "UPDATE Cache SET mode = 4, value = x'80' WHERE key LIKE 'tag/%'")
    async with opened_store(tmp_path) as store:
        assert store.tags.get(HUB, "library/debian", "stable") == {}
        assert store.registries.challenge(HUB) == "Bearer realm=x"


# -- start


async def test_leftovers_of_a_killed_process_are_removed_at_start(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
    mark_as_killed(tmp_path)
    [kept] = blob_files(tmp_path)
    (tmp_path / "staging" / "abc.123").write_bytes(b"half a bl")
    kept.with_name("orphan").write_bytes(b"renamed, but its row was never written")
    async with opened_store(tmp_path) as store:
        assert blob_files(tmp_path) == [kept]
        assert files_below(tmp_path / "staging") == []
        assert store.has(digest)


async def test_files_are_listed_only_after_an_unclean_stop(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"layer")
    [kept] = blob_files(tmp_path)
    unknown_file = kept.with_name("unknown_file")
    for close, left in ((lambda: None, True), (lambda: mark_as_killed(tmp_path), False)):
        unknown_file.write_bytes(b"")
        close()
        async with opened_store(tmp_path):
            assert unknown_file.exists() is left
            index = Index(tmp_path / "store")
            assert index.get("closed") is None
            index.close()


async def test_power_cut_does_not_restore_the_row_of_a_clean_stop(tmp_path: Path) -> None:
    """A power cut may undo changes that are in the log and not yet in the database. If it undid the deletion of this
    row, the next start would not look for files without a row."""
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"layer")
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"other")
        (tmp_path / "after/store").mkdir(parents=True)
        shutil.copy(tmp_path / "store/cache.db", tmp_path / "after/store/cache.db")
    index = Index(tmp_path / "after/store")
    assert index.get("format") is not None
    assert index.get("closed") is None
    index.close()


async def test_staged_content_is_kept_when_a_damaged_index_is_opened_again(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = Digest.of(b"layer")
        staged = await store.stage(digest, 5)
        staged.write(b"layer")
        store.index.note_failure(StoreDamaged("damaged"))
        await store.maintain()
        await store.commit(staged)
        store.finish(staged)
        blob = await store.open_blob(digest)
        assert blob is not None
        blob.close()


async def test_store_of_a_newer_format_is_refused_unchanged(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"layer")
    change_rows(tmp_path, "UPDATE Cache SET value = ? WHERE key = 'format'", str(FORMAT + 1))
    (tmp_path / "staging/other").write_bytes(b"another program's")
    before = {path: path.read_bytes() for path in files_below(tmp_path) if path.parent.name != "store"}
    store = Store(tmp_path, 64 * MIB)
    with pytest.raises(StoreTooNew, match=f"format {FORMAT + 1}.*reads up to {FORMAT}.*hubcache_dir"):
        store.open()
    assert not store.is_open
    await store.close()
    assert {path: path.read_bytes() for path in before} == before


async def test_refused_store_leaves_no_open_connection(tmp_path: Path) -> None:
    async with opened_store(tmp_path):
        pass
    change_rows(tmp_path, "UPDATE Cache SET value = 'x' WHERE key = 'format'")
    store = Store(tmp_path, 64 * MIB)
    with pytest.raises(StoreTooNew):
        store.open()
    await store.close()
    gc.collect()  # Python would warn here about an open connection


async def test_store_with_a_damaged_database_opens_without_content(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
    (tmp_path / "store/cache.db").write_bytes(b"\0garbage" * 1000)
    async with opened_store(tmp_path) as store:
        assert store.problem is None
        assert not store.has(digest)
        assert blob_files(tmp_path) == []
        await put_blob(store, b"layer")
        assert store.has(digest)


@pytest.mark.parametrize("pages", [range(8, 190), range(20, 26)])
async def test_store_with_damaged_database_pages_can_be_opened(tmp_path: Path, pages: range) -> None:
    async with opened_store(tmp_path) as store:
        await store.links.put(HUB, "library/debian", {Digest.of(str(n).encode()): n for n in range(3000)})
        await put_image(store, b"layer")
    with (tmp_path / "store/cache.db").open("r+b") as file:
        file.seek(pages.start * 4096)
        file.write(b"\xa5" * 4096 * len(pages))
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"another layer")
        assert store.problem is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("manifest/not-a-digest", b"a/b\n{}"),
        ("manifest/" + str(Digest.of(b"{")), b"a/b\n{"),
        ("manifest/" + str(Digest.of(b"")), "text"),
        ("retention/" + str(Digest.of(b"")), "not JSON"),
        ("retention/" + str(Digest.of(b"")), "[1]"),
        ("retention/" + str(Digest.of(b"")), b"short"),
        ("retention/x", encode_row((1, 2.0, 3.0, 4.0, False))),
        ("retention/clock", "[1]"),
    ],
)
async def test_malformed_row_does_not_prevent_the_start(tmp_path: Path, key: str, value: object) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        await store.registries.put_challenge(HUB, "x")
    change_rows(tmp_path, "DELETE FROM Cache WHERE key = ?", key)
    change_rows(tmp_path, "UPDATE Cache SET key = ?, value = ? WHERE key LIKE 'challenge/%'", key, value)
    async with opened_store(tmp_path) as store:
        assert store.has(digest)


async def test_manifest_row_with_a_pickle_is_not_served(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, _ = await put_image(store, b"layer")
    change_rows(tmp_path, "UPDATE Cache SET mode = 4 WHERE key LIKE 'manifest/%'")
    async with opened_store(tmp_path) as store:
        assert store.manifest(image) is None


async def test_stored_private_content_stays_private_after_a_long_stop(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        kept = await put_blob(store, b"private")
        for digest in (kept, Digest.of(b"gone")):
            await store.private.add(digest, HUB)
    change_rows(tmp_path, "UPDATE Cache SET expire_time = 1.0 WHERE key LIKE 'private/%'")
    async with opened_store(tmp_path) as store:
        assert store.private.sources(kept) == {HUB}
        assert not store.private.has(Digest.of(b"gone"))
        await store.expire()
        assert store.private.sources(kept) == {HUB}


@pytest.mark.parametrize("place", ["", "store", "staging", "lock"])
async def test_unusable_directory_raises_storage_error_until_it_can_be_used(tmp_path: Path, place: str) -> None:
    directory = tmp_path / "cache"
    if place:
        directory.mkdir()
    obstacle = directory / place
    obstacle.mkdir() if place == "lock" else obstacle.write_bytes(b"a file in its place")
    store = Store(directory, 64 * MIB)
    with pytest.raises(StorageError, match=str(directory)):
        store.open()
    assert not store.is_open
    assert store.problem is not None
    digest = Digest.of(b"layer")
    assert await store.open_blob(digest) is None
    assert store.tags.get(HUB, "a", "b") == {}
    assert store.links.get(HUB, "a", digest) is None
    for write in (store.stage(digest, 5), store.links.put(HUB, "a", {digest: 5}), store.popularity.flush()):
        with pytest.raises(StorageError):
            await write
    obstacle.rmdir() if place == "lock" else obstacle.unlink()
    store.open()
    await put_blob(store, b"layer")
    assert store.problem is None
    await store.close()


async def test_second_process_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    second = Store(tmp_path, 64 * MIB)
    async with opened_store(tmp_path) as first:
        digest = await put_blob(first, b"layer")
        with pytest.raises(StorageError, match="in use by another process"):
            second.open()
        assert first.has(digest)
    second.open()
    assert second.has(digest)
    await second.close()


async def test_store_is_unlocked_when_the_last_write_fails(tmp_path: Path) -> None:
    store = Store(tmp_path, 64 * MIB)
    store.open()
    store.popularity.count_request(Digest.of(b"image"))
    refuse(tmp_path, "INSERT")
    with pytest.raises(StorageError):
        await store.close()
    lock = os.open(tmp_path / "lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)


async def test_all_files_are_accessible_to_the_owner_only(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        async with opened_store(tmp_path / "cache") as store:
            await put_image(store, b"layer")
            staged = await store.stage(Digest.of(b"x"), 1)
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "cache", *blob_files(tmp_path)]}
            modes[staged.path] = stat.S_IMODE(staged.path.stat().st_mode)
            store.finish(staged)
            folders = [tmp_path / "cache", tmp_path / "cache/store", tmp_path / "cache/staging"]
            assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 3
            files = [path for path in files_below(tmp_path / "cache/store/blobs")] + [tmp_path / "cache/lock"]
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    finally:
        os.umask(old)


async def test_closed_store_finds_nothing_and_refuses_writes(tmp_path: Path) -> None:
    store = Store(tmp_path, 64 * MIB)
    store.open()
    await store.close()
    assert store.registries.challenge(HUB) is None
    with pytest.raises(StorageError):
        await store.stage(Digest.of(b"layer"), 5)
