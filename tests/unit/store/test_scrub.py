"""The scrub verifies all stored content, removes what is damaged, and continues after restarts."""

import asyncio
import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.operate.metrics import Metrics
from hubcache.operate.option_values import Scrub as Pace
from hubcache.serve.messages import Listener
from hubcache.store import blob_opening
from hubcache.store import scrub as scrub_module
from hubcache.store.file_check import PIECE, FileCheck
from hubcache.store.scrub import Scrub
from hubcache.store.stored_blob import open_regular
from hubcache.transfer.breaker import CircuitBreakers
from support.damage import damage_manifest, flip_bit
from support.engine import running
from support.metrics import value
from support.scrubs import FAST, Failures, files, scrubbing
from support.standin import Hub, random_bytes
from support.stores import opened_store, put_blob, put_image
from support.users import until


async def test_all_blobs_and_manifests_are_verified_in_one_round(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        layers = [random_bytes(size, size) for size in (10, PIECE, 2 * PIECE + 5)]
        image, _ = await put_image(store, *layers)
        record = store.manifest(image)
        assert record is not None
        async with scrubbing(store):
            await until(lambda: store.scrub_status.finished_at)
        assert store.scrub_status.objects >= 4
        assert store.scrub_status.bytes >= sum(map(len, layers)) + len(record.body)
        assert store.damage.count == 0


async def test_damaged_blob_is_found_without_a_request(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digests = [await put_blob(store, random_bytes(2 * PIECE, number)) for number in range(3)]
        [bad] = [path for path in files(tmp_path) if digests[1].hex in path.name]
        flip_bit(bad, 2 * PIECE - 1)
        async with scrubbing(store):
            await until(lambda: store.scrub_status.finished_at)
        assert [store.has(digest) for digest in digests] == [True, False, True]
        assert store.damage.last is not None
        assert (store.damage.last.digest, store.damage.last.path) == (digests[1], bad)


async def test_blob_whose_file_is_missing_is_found(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        missing, present = [await put_blob(store, random_bytes(10, number)) for number in range(2)]
        [path] = [path for path in files(tmp_path) if missing.hex in path.name]
        path.unlink()
        async with scrubbing(store):
            await until(lambda: store.scrub_status.finished_at)
        assert [store.has(digest) for digest in (missing, present)] == [False, True]


async def test_damaged_manifest_is_found(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        image, _ = await put_image(store, b"layer")
        damage_manifest(tmp_path)
        async with scrubbing(store):
            await until(lambda: store.scrub_status.finished_at)
        await store.maintain()
        assert not store.has(image)
        assert store.damage.count == 1


async def test_round_continues_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    step = FileCheck.step

    def noted(check: FileCheck) -> bool:
        verified.append(check._digest)
        return step(check)

    monkeypatch.setattr(FileCheck, "step", noted)
    async with opened_store(tmp_path) as store:
        digests = sorted([await put_blob(store, random_bytes(100, number)) for number in range(6)])
        scrub = Scrub(store, pytest.fail)
        scrub.rate = FAST
        for _ in range(3):
            await scrub._next()
        await scrub._save()
        assert store.scrub_status.progress == 0.5
    async with opened_store(tmp_path) as store, scrubbing(store):
        await until(lambda: len(verified) >= 6)
    assert verified[:6] == digests


async def test_blob_that_was_fetched_again_during_its_check_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:
        data = random_bytes(PIECE)
        digest = await put_blob(store, data)
        before = store.blob_path(digest)
        assert before is not None
        await store.remove(digest)
        await put_blob(store, data)
        paths, blob_path = [before], store.blob_path
        monkeypatch.setattr(store, "blob_path", lambda digest: paths.pop() if paths else blob_path(digest))
        await Scrub(store, pytest.fail)._verify(digest)
        assert paths == []
        assert store.has(digest)
        assert (list(store.capacity.history), store.capacity.removed, store.damage.count) == ([], 0, 0)


async def test_blob_that_cannot_be_opened_does_not_stop_the_scrub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:
        closed, other = [await put_blob(store, random_bytes(PIECE, number)) for number in range(2)]

        def opened(path: Path) -> int:
            if closed.hex in path.name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return open_regular(path)

        monkeypatch.setattr(blob_opening, "open_regular", opened)
        store.inspector.require_check(closed)
        failures = Failures()
        scrub = Scrub(store, failures.append)
        scrub.rate = FAST
        await scrub.step()
        await scrub.step()
        assert store.scrub_status.objects == 2
        assert len(failures) == 2
        assert store.inspector.required == (closed,)
        assert store.has(other)


async def test_content_beyond_the_length_of_the_queue_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub_module, "_QUEUE_LENGTH", 2)
    async with opened_store(tmp_path) as store:
        for number in range(5):
            await put_blob(store, random_bytes(100, number))
        scrub = Scrub(store, pytest.fail)
        scrub.rate = FAST
        for verified in range(1, 6):
            await scrub._next()
            assert (store.scrub_status.objects, store.scrub_status.progress) == (verified, pytest.approx(verified / 5))
        assert store.scrub_status.finished_at is None
        await scrub._next()
        assert store.scrub_status.finished_at is not None
        assert (store.scrub_status.objects, store.damage.count) == (5, 0)


async def test_end_of_the_last_round_survives_a_restart(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"layer")
        async with scrubbing(store):
            await until(lambda: store.scrub_status.finished_at)
        finished_at = store.scrub_status.finished_at
    async with opened_store(tmp_path) as store, scrubbing(store, rate=None):
        await until(lambda: store.scrub_status.finished_at)
        assert finished_at is not None
        assert store.scrub_status.finished_at is not None
        assert store.scrub_status.finished_at >= finished_at


@pytest.mark.parametrize("state", ["", "{", "[1]", "[1, 2, 3, 4]", '["x", "y", 1]', "null"])
async def test_malformed_state_begins_a_round(tmp_path: Path, state: str) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"layer")
        store.index.opened().set("scrub", state)
        async with scrubbing(store):
            await until(lambda: store.scrub_status.objects)


async def test_evicted_blob_is_not_read_to_its_end_and_takes_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, random_bytes(20 * PIECE))
        step, stepped, go_on = FileCheck.step, threading.Event(), threading.Event()

        def slow(check: FileCheck) -> bool:
            more = step(check)
            stepped.set()
            assert go_on.wait(30)
            return more

        monkeypatch.setattr(FileCheck, "step", slow)
        async with scrubbing(store):
            assert await asyncio.to_thread(stepped.wait, 30)
            await store.remove(digest)
            assert not [path for path in open_files() if digest.hex in path]
            assert store.usage.used == 0
            go_on.set()
            await until(lambda: store.scrub_status.objects)
        assert store.scrub_status.bytes == PIECE
        assert store.damage.count == 0


def open_files() -> list[str]:
    paths = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            paths.append(str(link.readlink()))
    return paths


async def test_engine_scrubs_stored_content_and_counts_it_in_the_metrics(hub: Hub, tmp_path: Path) -> None:
    data = random_bytes(PIECE)
    digest = hub.blob("library/app", data)
    path = f"/v2/library/app/blobs/{digest}"
    async with running(hub, tmp_path / "store") as cache:
        assert await cache.get(Listener.MIRROR, path) == (200, data)
        await until(lambda: cache.engine.store.has(Digest.parse(digest)))
    flip_bit(files(tmp_path / "store")[0])
    async with running(hub, tmp_path / "store", scrub=Pace(rate=FAST)) as cache:
        metrics = cache.engine.metrics
        await until(lambda: value(metrics, "hubcache_store_damaged"))
        assert value(metrics, "hubcache_quarantine_bytes") == PIECE
        await until(lambda: value(metrics, "hubcache_scrub_objects"))
        assert await cache.get(Listener.MIRROR, path) == (200, data)


async def test_metrics_contain_the_status_of_the_scrub(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        metrics = Metrics()
        metrics.watch(store, CircuitBreakers())
        assert value(metrics, "hubcache_scrub_finished_timestamp_seconds") == 0
        store.scrub_status.finished_at, store.scrub_status.progress, store.scrub_status.bytes = 12.0, 0.25, 100
        assert value(metrics, "hubcache_scrub_bytes") == 100
        assert value(metrics, "hubcache_scrub_finished_timestamp_seconds") == 12
        assert value(metrics, "hubcache_scrub_progress") == 0.25
