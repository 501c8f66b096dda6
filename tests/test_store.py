"""The store: its account is what is on disk, its cap holds, and whatever it finds at start it can live with."""

import asyncio
import errno
import fcntl
import gc
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path

import pytest
from hubcache.decide.records import Link, ManifestRecord, TagRecord
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError, StoreTooNew
from hubcache.oci.media import OCI_MANIFEST
from hubcache.store.store import FORMAT, Store
from parts import MIB, bytes_on_disk, files_below, manifest_of, opened_store, put_blob, put_image
from standin import random_bytes

NOW = time.time()
HUB = "registry-1.docker.io"
ROOM = 3 * MIB
"""A capacity that leaves somewhat less than 2 MiB for content; the rest is kept free for the index."""


def database(directory: Path) -> sqlite3.Connection:
    return sqlite3.connect(directory / "store/cache.db", autocommit=True)


def change(directory: Path, statement: str, *values: object) -> None:
    """Do something to the rows of a closed store."""
    connection = database(directory)
    connection.execute(statement, values)
    connection.close()


def blob_files(directory: Path) -> list[Path]:
    return files_below(directory / "store/blobs")


# -- content ---------------------------------------------------------------------------------------------------------


async def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, [layer] = await put_image(store, b"layer")
        record = store.manifest(image)
        used = store.ledger.used
    async with opened_store(tmp_path) as store:
        assert store.has(layer)
        assert store.manifest(image) == record
        blob = await store.open_blob(layer)
        assert blob is not None
        assert os.pread(blob.fd, 100, 0) == b"layer"
        blob.close()
        assert store.ledger.used == used
        assert store.ledger.children == {image: (layer,)}


async def test_what_was_only_staged_is_not_there(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = Digest.of(b"layer")
        staged = await store.stage(digest, 5)
        staged.write(b"layer")
        assert not store.has(digest)
        assert await store.open_blob(digest) is None
        store.finish(staged)
        assert store.ledger.used == 0
        assert files_below(tmp_path / "staging") == []


async def test_a_blob_is_no_manifest_and_a_manifest_no_blob(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, [layer] = await put_image(store, b"layer")
        assert (store.blob_size(layer), store.blob_size(image)) == (5, None)
        assert store.manifest(layer) is None
        assert await store.open_blob(image) is None
        assert store.has(image)


async def test_a_removed_blob_stays_readable_for_those_who_have_it_open(tmp_path: Path) -> None:
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
async def test_a_blob_whose_file_is_not_as_it_was_is_dropped(tmp_path: Path, damage: str) -> None:
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
        assert store.ledger.used == 0
        await put_blob(store, b"layer" * 100)
        blob = await store.open_blob(digest)
        assert blob is not None
        blob.close()


async def test_a_blob_whose_bytes_were_changed_is_not_served_after_a_restart(tmp_path: Path) -> None:
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


async def test_content_stored_as_manifest_and_as_blob_is_accounted_and_removed_as_both(tmp_path: Path) -> None:
    """Some registries also serve a manifest's bytes as a blob."""
    async with opened_store(tmp_path) as store:
        body = manifest_of(note="x" * 1000)
        digest = await put_blob(store, body)
        await store.put_manifest(digest, ManifestRecord(OCI_MANIFEST, body))
        assert store.manifest(digest) is not None
        await store.remove(digest)
        assert store.ledger.used == 0
        assert blob_files(tmp_path) == []


# -- the cap ---------------------------------------------------------------------------------------------------------


async def test_content_larger_than_the_store_is_refused_and_nothing_evicted_for_it(tmp_path: Path) -> None:
    async with opened_store(tmp_path, ROOM) as store:
        digest = await put_blob(store, b"layer")
        with pytest.raises(StorageError, match="do not fit"):
            await store.stage(Digest.of(b"big"), ROOM)
        assert store.has(digest)
        assert store.ledger.reserved == 0


async def test_room_is_made_by_giving_up_the_least_popular_image_whole(tmp_path: Path) -> None:
    async with opened_store(tmp_path, ROOM) as store:
        dull, [dull_layer] = await put_image(store, random_bytes(700_000, "dull"))
        loved, [loved_layer] = await put_image(store, random_bytes(700_000, "loved"))
        store.count_request(dull, NOW)
        store.count_request(loved, NOW)
        store.count_request(loved, NOW)
        await put_blob(store, random_bytes(700_000, "new"))
        assert [store.has(digest) for digest in (dull, dull_layer, loved, loved_layer)] == [False, False, True, True]
        assert store.evictions == 2


async def test_a_layer_that_a_remaining_image_needs_stays(tmp_path: Path) -> None:
    async with opened_store(tmp_path, ROOM) as store:
        shared = random_bytes(500_000, "shared")
        dull, [_, own] = await put_image(store, shared, random_bytes(500_000, "dull"), note="dull")
        loved, [base] = await put_image(store, shared, note="loved")
        store.count_request(loved, NOW)
        await put_blob(store, random_bytes(1_200_000, "new"))
        assert [store.has(digest) for digest in (dull, own, loved, base)] == [False, False, True, True]


async def test_a_blob_that_is_being_read_is_not_evicted(tmp_path: Path) -> None:
    async with opened_store(tmp_path, ROOM) as store:
        digest = await put_blob(store, random_bytes(1_200_000))
        blob = await store.open_blob(digest)
        assert blob is not None
        with pytest.raises(StorageError, match="in use"):
            await store.stage(Digest.of(b"new"), 1_200_000)
        assert store.ledger.used == 1_200_000
        blob.close()
        store.finish(await store.stage(Digest.of(b"new"), 1_200_000))
        assert not store.has(digest)


async def test_what_is_being_staged_counts_against_the_cap(tmp_path: Path) -> None:
    async with opened_store(tmp_path, ROOM) as store:
        first = await store.stage(Digest.of(b"a"), 1_200_000)
        with pytest.raises(StorageError):
            await store.stage(Digest.of(b"b"), 1_200_000)
        store.finish(first)
        store.finish(await store.stage(Digest.of(b"b"), 1_200_000))


async def test_content_of_unknown_size_reserves_as_it_grows_and_gives_back_what_it_did_not_need(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 32 * MIB) as store:
        staged = await store.stage(Digest.of(b"layer"), 0)
        await store.extend(staged, 1)
        assert store.ledger.used == staged.reserved >= 1
        await store.extend(staged, 10 * MIB)
        assert store.ledger.used == staged.reserved >= 10 * MIB
        with pytest.raises(StorageError):
            await store.extend(staged, 40 * MIB)
        staged.write(b"layer")
        await store.commit(staged)
        store.finish(staged)
        assert store.ledger.used == 5


async def test_a_smaller_capacity_holds_from_the_next_write_on(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 16 * MIB) as store:
        for number in range(8):
            await put_blob(store, random_bytes(500_000, number))
        store.capacity = ROOM
        await put_blob(store, random_bytes(500_000, "new"))
        assert bytes_on_disk(tmp_path) <= ROOM


async def test_manifests_count_and_the_cap_holds_when_they_are_large(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 16 * MIB) as store:
        for number in range(8):
            body = manifest_of(note=f"{number}" * (2 * MIB))
            try:
                await store.put_manifest(Digest.of(body), ManifestRecord(OCI_MANIFEST, body))
            except StorageError:
                pass  # refused is as good as evicted
            assert bytes_on_disk(tmp_path) <= 16 * MIB


async def test_room_that_is_not_yet_free_on_disk_is_not_given_to_another(tmp_path: Path) -> None:
    """The writer thread may be busy with a long sync; an evicted file is on disk until it gets there."""
    async with opened_store(tmp_path, ROOM) as store:
        await put_blob(store, random_bytes(1_900_000, "old"))
        busy = threading.Event()
        slow = asyncio.ensure_future(store._write(lambda: busy.wait(5)))
        evicting = asyncio.ensure_future(store.stage(Digest.of(b"evicting"), 1_000_000))
        await asyncio.sleep(0.02)
        other = asyncio.ensure_future(store.stage(Digest.of(b"other"), 900_000))
        await asyncio.sleep(0.02)
        if other.done():
            other.result().write(random_bytes(900_000))
        over = bytes_on_disk(tmp_path) + 1_000_000 - ROOM
        busy.set()
        for staged in await asyncio.gather(evicting, other):
            store.finish(staged)
        await slow
        assert over <= 0, f"{over} bytes more than the capacity were on disk or promised"


async def test_sixteen_at_once_never_exceed_the_cap(tmp_path: Path) -> None:
    async with opened_store(tmp_path, ROOM) as store:

        async def fill(number: int) -> bool:
            try:
                await put_blob(store, random_bytes(100_000 + number * 20_000, number))
            except StorageError:
                return False
            finally:
                assert bytes_on_disk(tmp_path) <= ROOM
            return True

        assert any(await asyncio.gather(*(fill(number) for number in range(16))))
        assert store.ledger.reserved == 0
        assert store.ledger.used == sum(path.stat().st_size for path in blob_files(tmp_path))


# -- failures of disk and database -----------------------------------------------------------------------------------


def refuse(directory: Path, event: str) -> None:
    change(directory, f"CREATE TRIGGER no BEFORE {event} ON Cache BEGIN SELECT RAISE(ABORT, 'disk is full'); END")


async def test_a_commit_that_the_index_refuses_leaves_neither_content_nor_file(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        assert store.problem is not None
        assert not store.has(Digest.of(b"layer"))
        assert store.ledger.used == 0
        assert blob_files(tmp_path) == []


async def test_content_that_could_not_be_removed_still_counts(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        refuse(tmp_path, "DELETE")
        with pytest.raises(StorageError):
            await store.remove(digest)
        assert store.ledger.used == sum(path.stat().st_size for path in blob_files(tmp_path))


async def test_a_problem_ends_when_writing_works_again(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        store.failed(StorageError("no space"))
        change(tmp_path, "DROP TRIGGER no")
        await put_blob(store, b"layer")
        assert store.problem is None


async def test_popularity_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    digest = Digest.of(b"image")
    async with opened_store(tmp_path) as store:
        store.count_request(digest, NOW)
        refuse(tmp_path, "INSERT")
        with pytest.raises(StorageError):
            await store.flush()
        change(tmp_path, "DROP TRIGGER no")
    async with opened_store(tmp_path) as store:
        assert digest in store.ledger.popularity


async def test_a_full_disk_while_staging_returns_the_reservation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:
        (tmp_path / "staging").rmdir()
        with pytest.raises(StorageError):
            await store.stage(Digest.of(b"layer"), 5)
        assert store.ledger.used == 0
        (tmp_path / "staging").mkdir()

        def refuse_write(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", refuse_write)
        with pytest.raises(StorageError):
            await put_blob(store, b"layer")
        assert store.ledger.used == 0
        assert files_below(tmp_path / "staging") == []


async def test_another_pickle_row_hides_only_itself(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await store.put_challenge(HUB, "Bearer realm=x")
        await store.put_tag(HUB, "library/debian", "stable", "*/*", TagRecord(Digest.of(b"m"), "a/b", 1, NOW))
    change(tmp_path, "UPDATE Cache SET mode = 4, value = x'80' WHERE key LIKE 'tag/%'")
    async with opened_store(tmp_path) as store:
        assert store.tags(HUB, "library/debian", "stable") == {}
        assert store.challenge(HUB) == "Bearer realm=x"


# -- start -----------------------------------------------------------------------------------------------------------


async def test_leftovers_of_a_killed_process_are_swept_at_start(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
    [kept] = blob_files(tmp_path)
    (tmp_path / "staging" / "abc.123").write_bytes(b"half a bl")
    kept.with_name("orphan").write_bytes(b"renamed, but its row was never written")
    async with opened_store(tmp_path) as store:
        assert blob_files(tmp_path) == [kept]
        assert files_below(tmp_path / "staging") == []
        assert store.has(digest)


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


async def test_damage_deep_in_the_database_costs_the_content_but_not_the_start(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await store.put_links(HUB, "library/debian", {Digest.of(str(n).encode()): n for n in range(3000)})
        await put_image(store, b"layer")
    path = tmp_path / "store/cache.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xa5" * (size - 9 * 4096))
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"another layer")
        assert store.problem is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("manifest/not-a-digest", b"a/b\n{}"),
        ("manifest/" + str(Digest.of(b"{")), b"a/b\n{"),
        ("manifest/" + str(Digest.of(b"")), "text"),
        ("popularity/" + str(Digest.of(b"")), "not JSON"),
        ("popularity/" + str(Digest.of(b"")), "[1]"),
        ("popularity/x", "[1, 2]"),
    ],
)
async def test_a_row_that_makes_no_sense_does_not_prevent_the_start(tmp_path: Path, key: str, value: object) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"layer")
        await store.put_challenge(HUB, "x")
    change(tmp_path, "UPDATE Cache SET key = ?, value = ? WHERE key LIKE 'challenge/%'", key, value)
    async with opened_store(tmp_path) as store:
        assert store.has(digest)


async def test_a_manifest_row_that_holds_a_pickle_is_not_served(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, _ = await put_image(store, b"layer")
    change(tmp_path, "UPDATE Cache SET mode = 4 WHERE key LIKE 'manifest/%'")
    async with opened_store(tmp_path) as store:
        assert store.manifest(image) is None


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
    assert store.tags(HUB, "a", "b") == {}
    assert store.link(HUB, "a", digest) is None
    for write in (store.stage(digest, 5), store.put_links(HUB, "a", {digest: 5}), store.flush()):
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
    store.count_request(Digest.of(b"image"), NOW)
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
    assert store.challenge(HUB) is None
    with pytest.raises(StorageError):
        await store.stage(Digest.of(b"layer"), 5)


# -- facts -----------------------------------------------------------------------------------------------------------


async def test_tags_are_remembered_by_negotiation_until_dropped(tmp_path: Path) -> None:
    index, single = (TagRecord(Digest.of(text), "a/b", 1, NOW) for text in (b"index", b"single"))
    async with opened_store(tmp_path) as store:
        await store.put_tag(HUB, "library/debian", "stable", "index", index)
        await store.put_tag(HUB, "library/debian", "stable", "single", single)
        await store.put_tag("ghcr.io", "library/debian", "stable", "index", single)
    async with opened_store(tmp_path) as store:
        assert store.tags(HUB, "library/debian", "stable") == {"index": index, "single": single}
        await store.drop_tag(HUB, "library/debian", "stable")
        assert store.tags(HUB, "library/debian", "stable") == {}
        assert store.tags("ghcr.io", "library/debian", "stable") == {"index": single}


async def test_two_negotiations_of_one_tag_that_arrive_together_are_both_remembered(tmp_path: Path) -> None:
    record = TagRecord(Digest.of(b"m"), "a/b", 1, NOW)
    async with opened_store(tmp_path) as store:
        await asyncio.gather(*(store.put_tag(HUB, "a", "latest", accept, record) for accept in ("one", "two")))
        assert set(store.tags(HUB, "a", "latest")) == {"one", "two"}


async def test_a_link_is_known_for_its_repository_only(tmp_path: Path) -> None:
    digest, other = Digest.of(b"layer"), Digest.of(b"other")
    async with opened_store(tmp_path) as store:
        await store.put_links(HUB, "library/debian", {digest: 5, other: None})
        assert store.link(HUB, "library/debian", digest) == Link(5)
        assert store.link(HUB, "library/debian", other) == Link(None)
        assert store.link(HUB, "library/debia", digest) is None
        assert store.link("ghcr.io", "library/debian", digest) is None


async def test_popularity_survives_a_restart_once_flushed(tmp_path: Path) -> None:
    digest = Digest.of(b"image")
    async with opened_store(tmp_path) as store:
        store.count_request(digest, NOW)
        store.count_request(digest, NOW)
    async with opened_store(tmp_path) as store:
        assert store.ledger.popularity[digest].count == 2.0


async def test_a_challenge_is_remembered_and_replaced(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        assert store.challenge(HUB) is None
        await store.put_challenge(HUB, "Bearer realm=a")
        await store.put_challenge(HUB, "Bearer realm=b")
        assert store.challenge(HUB) == "Bearer realm=b"
