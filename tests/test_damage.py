"""Stored content that is not what its digest says is put aside, told, and fetched anew."""

import asyncio
import errno
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.serve.messages import Answer, Door
from hubcache.store.proof import PIECE
from hubcache.store.quarantine import MAX_FILES, Quarantine
from hubcache.store.scrub import Scrub
from hubcache.store.store import Store
from hubcache.store.stored import open_regular
from pair import paired
from parts import MIB, files_below, opened_store, put_blob, put_image
from rig import Cache, read, running
from standin import Hub, random_bytes

LAYER = random_bytes(3 * PIECE + 7)
REPO = "library/app"


def blob_file(directory: Path) -> Path:
    """The file of the only blob."""
    [path] = files_below(directory / "store/blobs")
    return path


def flip(path: Path, at: int = 1) -> None:
    """Change one bit as a failing disk does: neither the size nor the times tell."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def killed(directory: Path) -> None:
    """Make a closed store look as if its process had been killed."""
    with sqlite3.connect(directory / "store/cache.db") as connection:
        connection.execute("DELETE FROM Cache WHERE key = 'closed'")
    connection.close()


async def opens(store: Store, digest: Digest) -> bool:
    """Whether a blob can be opened; it is right then."""
    blob = await store.open_blob(digest)
    if blob is None:
        return False
    with os.fdopen(os.dup(blob.fd), "rb") as file:
        assert digest.matches(file.read())
    blob.close()
    return True


def quarantined(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in files_below(directory / "quarantine")]


# -- blobs


async def test_doubted_blob_is_verified_once_and_served(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        store.inspector.doubt(digest)
        assert await opens(store, digest)
        assert store.inspector.doubted == ()


async def test_doubted_blob_that_is_damaged_is_put_aside_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        path = blob_file(tmp_path)
        flip(path, len(LAYER) - 1)
        bad = path.read_bytes()
        store.inspector.doubt(digest)
        assert not await opens(store, digest)
        assert not store.has(digest)
        assert quarantined(tmp_path) == [bad]
        assert store.ledger.used == store.ledger.quarantined > len(LAYER)
        assert store.damages == 1
        assert store.last_damage is not None
        assert (store.last_damage.digest, store.last_damage.path) == (digest, path)
        [line] = [record.getMessage() for record in caplog.records]
        assert str(digest) in line
        assert str(path) in line
        await put_blob(store, LAYER)
        assert await opens(store, digest)
    async with opened_store(tmp_path) as store:
        assert store.ledger.quarantined > len(LAYER)


async def test_what_is_put_aside_counts_all_the_time(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        flip(blob_file(tmp_path))
        store.inspector.doubt(digest)
        seen: list[int] = []
        store.changed = lambda: seen.append(store.ledger.used)
        before = store.ledger.used
        assert not await opens(store, digest)
        assert set(seen) == {before}


async def test_many_who_wait_for_one_verification_cost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        read_pieces: list[int] = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda *which: read_pieces.append(which[2]) or pread(*which))
        store.inspector.doubt(digest)
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
        assert store.inspector.doubted == (digest,)
        assert await opens(store, digest)
        store.inspector.suspect(digest)
        assert store.inspector.doubted == ()
        store.inspector.doubt(digest)
        assert store.inspector.doubted == (digest,)


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
        assert store.damages == 1
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
        assert store.damages == 0
        assert caplog.records == []


async def test_blob_that_the_disk_cannot_read_breaks_off_and_is_fetched_at_the_retry(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, LAYER)
    async with stored(hub, tmp_path, digest) as cache:
        path = blob_file(tmp_path / "store")
        bad = path.stat().st_ino

        def failing(fd: int, count: int, at: int) -> bytes:
            if os.fstat(fd).st_ino == bad and at >= PIECE:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(fd, count, at)

        pread = os.pread
        monkeypatch.setattr(os, "pread", failing)
        with pytest.raises(StorageError):
            await cache.get(Door.MIRROR, f"/v2/{REPO}/blobs/{digest}")
        assert await cache.get(Door.MIRROR, f"/v2/{REPO}/blobs/{digest}") == (200, LAYER)
        assert cache.engine.store.damages == 1
        assert not path.exists()


def stored(hub: Hub, tmp_path: Path, *digests: str) -> "_Stored":
    """A cache that has these blobs of the Hub."""
    return _Stored(hub, tmp_path / "store", digests)


class _Stored:
    def __init__(self, hub: Hub, directory: Path, digests: tuple[str, ...]) -> None:
        self._running = running(hub, directory)
        self._digests = digests

    async def __aenter__(self) -> Cache:
        cache = await self._running.__aenter__()
        for digest in self._digests:
            assert (await cache.get(Door.MIRROR, f"/v2/{REPO}/blobs/{digest}"))[0] == 200
        await asyncio.gather(*cache.engine.fills._tasks)
        return cache

    async def __aexit__(self, *error: object) -> None:
        await self._running.__aexit__(None, None, None)


# -- suspicion


async def test_client_that_asks_again_for_what_it_received_whole_gets_it_right(hub: Hub, tmp_path: Path) -> None:
    digest = hub.blob(REPO, LAYER)
    async with stored(hub, tmp_path, digest) as cache:
        flip(blob_file(tmp_path / "store"))
        assert await pull(cache, digest) != LAYER
        assert await pull(cache, digest) == LAYER
        assert cache.engine.store.damages == 1


async def test_client_of_a_mirror_that_offers_what_it_has_is_told_that_a_damaged_blob_must_be_fetched_again(
    hub: Hub, tmp_path: Path
) -> None:
    digest = hub.blob(REPO, LAYER)
    async with stored(hub, tmp_path, digest) as cache:
        cache.apply(offer_only=True)
        flip(blob_file(tmp_path / "store"))
        assert await pull(cache, digest) != LAYER
        assert await pull(cache, digest) == LAYER


@pytest.mark.parametrize(
    "other",
    [{"client": "192.0.2.9"}, {"agent": "other"}, {"part": "bytes=0-"}],
    ids=["another address", "another program", "a range"],
)
async def test_other_requests_raise_no_suspicion(hub: Hub, tmp_path: Path, other: dict[str, str]) -> None:
    digest = hub.blob(REPO, LAYER)
    async with stored(hub, tmp_path, digest) as cache:
        assert await pull(cache, digest) == LAYER
        await pull(cache, digest, **other)
        assert Digest.parse(digest) not in cache.engine.store.inspector._found_good


async def test_clients_that_pull_at_the_same_time_raise_no_suspicion(hub: Hub, tmp_path: Path) -> None:
    """Machines behind one address."""
    digest = hub.blob(REPO, LAYER)
    async with stored(hub, tmp_path, digest) as cache:
        answers = [await ask(cache, digest) for _ in range(4)]
        assert [await read(answer) for answer in answers] == [LAYER] * 4
        assert Digest.parse(digest) not in cache.engine.store.inspector._found_good


async def ask(
    cache: Cache, digest: str, client: str = "192.0.2.1", agent: str = "containerd", part: str | None = None
) -> Answer:
    headers = {"user_agent": agent} | ({} if part is None else {"range": part})
    request = cache.request(Door.MIRROR, "GET", f"/v2/{REPO}/blobs/{digest}", **headers)
    answer = await cache.engine.answer(replace(request, client=client))
    assert isinstance(answer, Answer)
    return answer


async def pull(cache: Cache, digest: str, **who: str) -> bytes:
    return await read(await ask(cache, digest, **who))


# -- unclean stops


async def test_blobs_that_were_stored_last_before_an_unclean_stop_are_verified_before_they_are_served(
    tmp_path: Path,
) -> None:
    async with opened_store(tmp_path) as store:
        old = await put_blob(store, b"old")
        date_back(tmp_path)
        new = await put_blob(store, LAYER)
    killed(tmp_path)
    async with opened_store(tmp_path) as store:
        assert store.unclean
        assert store.has(old)
        assert store.inspector.doubted == (new,)


def date_back(directory: Path) -> None:
    """Let the only blob be one that was stored long ago."""
    path = blob_file(directory)
    digest, _, unique = path.name.split(".")
    past = 10**18
    os.utime(path, ns=(past, past))
    path = path.rename(path.with_name(f"{digest}.{past:x}.{unique}"))
    with sqlite3.connect(directory / "store/cache.db") as connection:
        name = str(path.relative_to(directory / "store"))
        connection.execute("UPDATE Cache SET filename = ? WHERE key LIKE 'blob/%'", (name,))
    connection.close()


async def test_store_that_was_closed_in_order_is_trusted(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, LAYER)
    async with opened_store(tmp_path) as store:
        assert not store.unclean
        assert store.inspector.doubted == ()


async def test_row_whose_file_was_lost_in_an_unclean_stop_is_forgotten(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
    blob_file(tmp_path).unlink()
    killed(tmp_path)
    async with opened_store(tmp_path) as store:
        assert not store.has(digest)
        assert store.ledger.used == 0


# -- manifests


def spoil_manifest(directory: Path) -> None:
    with sqlite3.connect(directory / "store/cache.db") as connection:
        connection.execute(
            "UPDATE Cache SET value = CAST(REPLACE(CAST(value AS TEXT), 'layers', 'Layers') AS BLOB)"
            " WHERE key LIKE 'manifest/%'"
        )
    connection.close()


async def test_manifest_that_is_damaged_is_not_given_and_put_aside(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, _ = await put_image(store, b"layer")
        spoil_manifest(tmp_path)
        assert store.manifest(image) is None
        await store.keep_house()
        assert not store.has(image)
        assert store.damages == 1
        [kept] = quarantined(tmp_path)
        assert b'"Layers"' in kept


async def test_damaged_manifest_is_fetched_anew_at_the_first_request(hub: Hub, tmp_path: Path) -> None:
    image = hub.image(REPO, "1")
    path = f"/v2/{REPO}/manifests/1"
    async with running(hub, tmp_path / "store") as cache:
        assert await cache.get(Door.MIRROR, path) == (200, image.manifest)
        spoil_manifest(tmp_path / "store")
        assert await cache.get(Door.MIRROR, path) == (200, image.manifest)
        await cache.engine.store.keep_house()
        hub.reset_log()
        assert await cache.get(Door.MIRROR, path) == (200, image.manifest)
        assert hub.count() == 0


# -- the folder of what was put aside


def test_quarantine_keeps_the_last_files_up_to_a_number_and_a_size(tmp_path: Path) -> None:
    now = iter(range(100))
    quarantine = Quarantine(tmp_path / "quarantine", lambda: float(next(now)))
    for number in range(MAX_FILES + 5):
        assert quarantine.put(bytes([number]) * 1000, Digest.of(bytes([number]))) is not None
    kept = sorted(path.read_bytes()[0] for path in files_below(tmp_path / "quarantine"))
    assert kept == list(range(5, MAX_FILES + 5))
    quarantine.most = 3 * 4096
    assert quarantine.trim() == 3 * 4096
    kept = sorted(path.read_bytes()[0] for path in files_below(tmp_path / "quarantine"))
    assert kept == list(range(MAX_FILES + 2, MAX_FILES + 5))


def test_file_that_is_too_large_for_the_quarantine_is_removed(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine")
    quarantine.most = 4096
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 5000)
    assert quarantine.move(path, Digest.of(b"x")) is None
    assert not path.exists()
    assert quarantine.put(b"x" * 5000, Digest.of(b"x")) is None
    assert quarantine.trim() == 0


# -- directories that are deleted


@pytest.mark.parametrize("gone", [".", "store", "store/blobs", "staging", "lock"])
async def test_storing_goes_on_when_a_directory_is_deleted(tmp_path: Path, gone: str) -> None:
    directory = tmp_path / "cache"
    async with opened_store(directory) as store:
        digest = await put_blob(store, LAYER)
        remove: Callable[[Path], None] = Path.unlink if gone == "lock" else shutil.rmtree  # type: ignore[assignment]
        remove(directory / gone)
        await store.keep_house()
        assert store.is_open
        other = await put_blob(store, b"other")
        assert await opens(store, other)
        files = files_below(directory / "store/blobs")
        assert store.ledger.used == sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
        assert store.has(digest) is (gone in ("staging", "lock"))
    async with opened_store(directory) as store:
        assert await opens(store, other)


async def test_content_can_be_staged_at_once_when_the_directory_was_deleted(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    async with opened_store(directory, 64 * MIB) as store:
        await put_blob(store, LAYER)
        shutil.rmtree(directory)
        digest = await put_blob(store, LAYER)
        assert await opens(store, digest)
    async with opened_store(directory) as store:
        assert await opens(store, digest)


async def test_damage_that_could_not_be_put_aside_is_still_doubted(tmp_path: Path) -> None:
    """Somebody else is removing it, and may yet keep it."""
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
        flip(blob_file(tmp_path))
        store.inspector.doubt(digest)
        victim = store.rooms.retention.purge(digest, 0.0)
        assert victim is not None
        scrub = Scrub(store, pytest.fail)
        await scrub.look()
        store.rooms._take_back(victim)
        assert not await opens(store, digest)
        assert store.damages == 1
        store.inspector.doubt(digest)
        await scrub.look()
        assert store.inspector.doubted == ()


# -- with workers


async def test_small_blob_that_is_damaged_is_given_to_nobody(hub: Hub, tmp_path: Path) -> None:
    """A worker repeats it for a second, whoever asks."""
    small = random_bytes(5000)
    digest = hub.blob(REPO, small)
    async with stored(hub, tmp_path, digest) as cache, paired(cache) as pair:
        flip(blob_file(tmp_path / "store"))
        for _ in range(2):
            assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == small
        assert cache.engine.store.damages == 1


async def test_client_of_a_worker_that_asks_again_gets_it_right(hub: Hub, tmp_path: Path) -> None:
    digest = hub.blob(REPO, LAYER)
    async with stored(hub, tmp_path, digest) as cache, paired(cache) as pair:
        request = replace(cache.request(Door.MIRROR, "GET", f"/v2/{REPO}/blobs/{digest}"), client="192.0.2.1")
        flip(blob_file(tmp_path / "store"))
        bodies = []
        for _ in range(2):
            answer = await pair.remote.answer(request)
            assert answer is not None
            bodies.append(await read(answer))
        assert [body == LAYER for body in bodies] == [False, True]
        assert cache.engine.store.damages == 1


async def test_blob_that_a_worker_cannot_read_breaks_off_and_is_fetched_at_the_retry(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, LAYER)
    async with stored(hub, tmp_path, digest) as cache, paired(cache) as pair:
        bad, pread = blob_file(tmp_path / "store").stat().st_ino, os.pread

        def failing(fd: int, count: int, at: int) -> bytes:
            if os.fstat(fd).st_ino == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(fd, count, at)

        monkeypatch.setattr(os, "pread", failing)
        with pytest.raises(StorageError):
            await read(await pair.get(f"/v2/{REPO}/blobs/{digest}"))
        assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == LAYER
        assert cache.engine.store.damages == 1


async def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)


async def test_another_process_is_kept_out_when_the_lock_was_deleted(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        (tmp_path / "lock").unlink()
        await store.keep_house()
        other = Store(tmp_path, 64 * MIB)
        with pytest.raises(StorageError, match="in use by another process"):
            other.open()
        await other.close()
