"""The store in trouble: whatever it finds at start or the disk refuses, it can live with."""

import errno
import fcntl
import gc
import os
import shutil
import sqlite3
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
from support.stores import MIB, files_below, opened_store, put_blob, put_image

NOW = time.time()
HUB = "registry-1.docker.io"
ROOM = ALLOWANCE + 2 * MIB
"""A capacity that leaves somewhat less than 2 MiB for content; the rest is kept free for the index."""


def database(directory: Path) -> sqlite3.Connection:
    return sqlite3.connect(directory / "store/cache.db", autocommit=True)


def change(directory: Path, statement: str, *values: object) -> None:
    """Do something to the rows of a closed store."""
    connection = database(directory)
    connection.execute(statement, values)
    connection.close()


def killed(directory: Path) -> None:
    """Make a closed store look as if its process had been killed."""
    change(directory, "DELETE FROM Cache WHERE key = 'closed'")


def blob_files(directory: Path) -> list[Path]:
    return files_below(directory / "store/blobs")


# -- failures of disk and database


def refuse(directory: Path, event: str) -> None:
    change(directory, f"CREATE TRIGGER no BEFORE {event} ON Cache BEGIN SELECT RAISE(ABORT, 'disk is full'); END")


async def test_a_commit_that_the_index_refuses_leaves_neither_content_nor_file(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        assert store.problem is not None
        assert not store.has(Digest.of(b"layer"))
        assert store.usage.used == 0
        assert blob_files(tmp_path) == []


async def test_content_that_could_not_be_removed_still_counts(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        refuse(tmp_path, "DELETE")
        with pytest.raises(StorageError):
            await store.remove(digest)
        assert store.usage.used == sum(size_on_disk(path.stat().st_size) for path in blob_files(tmp_path))


async def test_a_problem_ends_when_writing_works_again(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        store.index.staging_failed(StorageError("no space"))
        change(tmp_path, "DROP TRIGGER no")
        await put_blob(store, b"layer")
        assert store.problem is None


async def test_popularity_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    digest = Digest.of(b"image")
    async with opened_store(tmp_path) as store:
        store.popularity.count_request(digest)
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await store.popularity.flush()
        change(tmp_path, "DROP TRIGGER no")
    async with opened_store(tmp_path) as store:
        assert store.popularity.was_requested(digest)


async def test_a_full_disk_while_staging_returns_the_reservation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:

        def refuse_write(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", refuse_write)
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        assert store.usage.used == 0
        assert files_below(tmp_path / "staging") == []


async def test_another_pickle_row_hides_only_itself(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await store.registries.put_challenge(HUB, "Bearer realm=x")
        await store.tags.put(HUB, "library/debian", "stable", "*/*", TagRecord(Digest.of(b"m"), "a/b", 1, NOW))
    change(tmp_path, "UPDATE Cache SET mode = 4, value = x'80' WHERE key LIKE 'tag/%'")
    async with opened_store(tmp_path) as store:
        assert store.tags.get(HUB, "library/debian", "stable") == {}
        assert store.registries.challenge(HUB) == "Bearer realm=x"


# -- start


async def test_leftovers_of_a_killed_process_are_swept_at_start(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
    killed(tmp_path)
    [kept] = blob_files(tmp_path)
    (tmp_path / "staging" / "abc.123").write_bytes(b"half a bl")
    kept.with_name("orphan").write_bytes(b"renamed, but its row was never written")
    async with opened_store(tmp_path) as store:
        assert blob_files(tmp_path) == [kept]
        assert files_below(tmp_path / "staging") == []
        assert store.has(digest)


async def test_files_are_looked_through_again_only_when_the_store_was_not_closed_in_order(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"layer")
    [kept] = blob_files(tmp_path)
    stranger = kept.with_name("stranger")
    for close, left in ((lambda: None, True), (lambda: killed(tmp_path), False)):
        stranger.write_bytes(b"")
        close()
        async with opened_store(tmp_path):
            assert stranger.exists() is left
            index = Index(tmp_path / "store")
            assert index.get("closed") is None
            index.close()


async def test_power_cut_does_not_bring_back_that_the_store_was_closed_in_order(tmp_path: Path) -> None:
    """It takes what was written last to the log and not yet to the database: files of then have no row."""
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


async def test_content_that_is_arriving_stays_when_a_damaged_index_is_opened_again(tmp_path: Path) -> None:
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


async def test_a_store_of_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"layer")
    change(tmp_path, "UPDATE Cache SET value = ? WHERE key = 'format'", str(FORMAT + 1))
    (tmp_path / "staging/other").write_bytes(b"another program's")
    before = {path: path.read_bytes() for path in files_below(tmp_path) if path.parent.name != "store"}
    store = Store(tmp_path, 64 * MIB)
    with pytest.raises(StoreTooNew, match=f"format {FORMAT + 1}.*reads up to {FORMAT}.*hubcache_dir"):
        store.open()
    assert not store.is_open
    await store.close()
    assert {path: path.read_bytes() for path in before} == before


async def test_a_refused_store_leaves_no_connection_open(tmp_path: Path) -> None:
    async with opened_store(tmp_path):
        pass
    change(tmp_path, "UPDATE Cache SET value = 'x' WHERE key = 'format'")
    store = Store(tmp_path, 64 * MIB)
    with pytest.raises(StoreTooNew):
        store.open()
    await store.close()
    gc.collect()  # an open connection warns here


async def test_a_damaged_database_costs_the_content_but_not_the_start(tmp_path: Path) -> None:
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
async def test_damage_deep_in_the_database_costs_content_but_not_the_start(tmp_path: Path, pages: range) -> None:
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
async def test_a_row_that_makes_no_sense_does_not_prevent_the_start(tmp_path: Path, key: str, value: object) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        await store.registries.put_challenge(HUB, "x")
    change(tmp_path, "DELETE FROM Cache WHERE key = ?", key)
    change(tmp_path, "UPDATE Cache SET key = ?, value = ? WHERE key LIKE 'challenge/%'", key, value)
    async with opened_store(tmp_path) as store:
        assert store.has(digest)


async def test_a_manifest_row_that_holds_a_pickle_is_not_served(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, _ = await put_image(store, b"layer")
    change(tmp_path, "UPDATE Cache SET mode = 4 WHERE key LIKE 'manifest/%'")
    async with opened_store(tmp_path) as store:
        assert store.manifest(image) is None


async def test_what_is_stored_is_private_after_any_time_that_the_program_did_not_run(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        kept = await put_blob(store, b"private")
        for digest in (kept, Digest.of(b"gone")):
            await store.private.add(digest, HUB)
    change(tmp_path, "UPDATE Cache SET expire_time = 1.0 WHERE key LIKE 'private/%'")
    async with opened_store(tmp_path) as store:
        assert store.private.sources(kept) == {HUB}
        assert not store.private.has(Digest.of(b"gone"))
        await store.expire()
        assert store.private.sources(kept) == {HUB}


@pytest.mark.parametrize("place", ["", "store", "staging", "lock"])
async def test_a_directory_that_cannot_be_used_is_a_storage_error_and_pulls_can_go_on(
    tmp_path: Path, place: str
) -> None:
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


async def test_a_second_process_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    second = Store(tmp_path, 64 * MIB)
    async with opened_store(tmp_path) as first:
        digest = await put_blob(first, b"layer")
        with pytest.raises(StorageError, match="in use by another process"):
            second.open()
        assert first.has(digest)
    second.open()
    assert second.has(digest)
    await second.close()


async def test_a_store_that_cannot_write_its_last_words_still_lets_go(tmp_path: Path) -> None:
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


async def test_everything_is_only_for_the_owner(tmp_path: Path) -> None:
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


async def test_a_closed_store_finds_nothing_and_refuses_writes(tmp_path: Path) -> None:
    store = Store(tmp_path, 64 * MIB)
    store.open()
    await store.close()
    assert store.registries.challenge(HUB) is None
    with pytest.raises(StorageError):
        await store.stage(Digest.of(b"layer"), 5)
