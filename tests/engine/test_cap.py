"""The cap holds when clients begin to read victims, when removals fail, and while readers keep removed files open."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored, StorageError
from hubcache.oci.media import OCI_MANIFEST
from hubcache.serve.messages import Answer, Listener
from hubcache.store.capacity import ALLOWANCE
from hubcache.store.store import Store
from hubcache.store.stored_blob import StoredBlob
from hubcache.store.usage import BLOCK, size_on_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engine import read, running
from support.standin import Hub, random_bytes
from support.stores import MIB, bytes_on_disk, files_below, manifest_of, opened_store, put_blob

CAP = ALLOWANCE + 4 * MIB
"""A capacity with somewhat less than 4 MiB for content; the rest is for the index."""


async def filled(store: Store, count: int, size: int) -> list[Digest]:
    """Store this many blobs, of which the first are evicted first."""
    digests = []
    for number in range(count):
        digests.append(await put_blob(store, random_bytes(size, number)))
        for _ in range(number):
            store.popularity.count_request(digests[-1])
    return digests


def popular(store: Store, name: str) -> Digest:
    """Return a digest that is requested more than anything that is stored."""
    digest = Digest.of(name.encode())
    for _ in range(50):
        store.popularity.count_request(digest)
    return digest


def after_first_removal(store: Store, act: Callable[[], Awaitable[object]]) -> None:
    """Call `act` between the first removal and the next."""
    remove, acted = store.remove, False

    async def removing(digest: Digest) -> None:
        nonlocal acted
        await remove(digest)
        if not acted:
            acted = True
            await act()

    store.remove = removing  # type: ignore[method-assign]


# -- victims that become protected


async def test_victim_that_a_client_began_to_read_is_replaced_by_another(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        digests = await filled(store, 5, 700_000)
        opened: list[StoredBlob] = []

        async def begin_to_read() -> None:
            blob = await store.open_blob(digests[1])
            assert blob is not None
            opened.append(blob)

        after_first_removal(store, begin_to_read)
        staged = await store.stage(popular(store, "new"), 1_400_000)
        assert [store.has(digest) for digest in digests] == [False, True, False, True, True]
        assert store.usage.used <= store.capacity.limit(store.index.opened().bytes)
        opened[0].close()
        store.finish(staged)


async def test_new_content_is_refused_when_all_other_content_is_being_read(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        digests = await filled(store, 5, 700_000)
        opened: list[StoredBlob | None] = []

        async def begin_to_read() -> None:
            opened.extend([await store.open_blob(digest) for digest in digests[1:]])

        after_first_removal(store, begin_to_read)
        with pytest.raises(StorageError, match="in use"):
            await store.stage(popular(store, "new"), 1_400_000)
        assert store.usage.reserved == 0
        assert set(store.capacity.retention.stored) == set(digests[1:])
        for blob in opened:
            assert blob is not None
            blob.close()


async def test_new_content_is_refused_when_all_other_content_is_requested_more(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        digests = await filled(store, 5, 700_000)
        for digest in digests[2:]:
            for _ in range(200):
                store.popularity.count_request(digest)
        opened: list[StoredBlob | None] = []

        async def begin_to_read() -> None:
            opened.append(await store.open_blob(digests[1]))

        after_first_removal(store, begin_to_read)
        with pytest.raises(NotStored, match="requested more"):
            await store.stage(popular(store, "new"), 1_400_000)
        assert store.usage.reserved == 0
        for blob in opened:
            assert blob is not None
            blob.close()


# -- removals that fail


async def test_victims_after_a_failed_removal_can_be_evicted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StorageError("disk is full")

    async with opened_store(tmp_path, CAP) as store:
        digests = await filled(store, 5, 700_000)
        with monkeypatch.context() as patch:
            patch.setattr(store.index.opened(), "delete", fail)
            with pytest.raises(StorageError, match="disk is full"):
                await store.stage(popular(store, "new"), 2_000_000)
        assert set(store.capacity.retention.stored) == set(digests)
        assert store.usage.reserved == 0
        store.finish(await store.stage(popular(store, "new"), 2_000_000))


async def test_usage_matches_the_disk_after_a_cancelled_eviction(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        await filled(store, 5, 700_000)
        staging = asyncio.create_task(store.stage(popular(store, "new"), 2_000_000))

        async def give_up() -> None:
            staging.cancel()

        after_first_removal(store, give_up)
        await asyncio.gather(staging, return_exceptions=True)
        await store.popularity.flush()
        files = files_below(tmp_path / "store/blobs")
        assert store.usage.used == sum(size_on_disk(path.stat().st_size) for path in files)
        assert set(store.capacity.retention.stored) == store.usage.sizes.keys()


# -- removed files that are still open


async def test_removed_blob_counts_until_its_last_reader_closes_it(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        digest = await put_blob(store, random_bytes(700_000))
        first, second = await store.open_blob(digest), await store.open_blob(digest)
        assert first is not None
        assert second is not None
        await store.remove(digest)
        for blob in (first, second):
            assert store.usage.used == size_on_disk(700_000)
            blob.close()
        assert store.usage.used == 0


async def test_filled_blob_that_a_client_still_reads_is_not_evicted(hub: Hub, tmp_path: Path) -> None:
    data = random_bytes(3 * MIB)
    digest = hub.blob("library/app", data)
    async with running(hub, tmp_path / "store", size=CAP) as cache:
        store = cache.engine.store
        answer = await cache.engine.answer(cache.request(Listener.MIRROR, "GET", f"/v2/library/app/blobs/{digest}"))
        assert isinstance(answer, Answer)
        await asyncio.gather(*cache.engine.fills._tasks)
        assert store.has(Digest.parse(digest))
        with pytest.raises(StorageError, match="in use"):
            await store.stage(popular(store, "new"), 3 * MIB)
        assert await read(answer) == data
        store.finish(await store.stage(popular(store, "new"), 3 * MIB))


async def test_uncommitted_content_counts_until_its_last_reader_closes_it(hub: Hub, tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        staged = await store.stage(Digest.of(b"layer"), 1 * MIB)
        store.usage.begin_reading(staged.digest)
        staged.write(random_bytes(1 * MIB))
        store.finish(staged)
        assert store.usage.used == 1 * MIB
        store.usage.end_reading(staged.digest)
        assert store.usage.used == 0


# -- the index


async def test_cap_holds_when_the_largest_manifests_are_stored(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 32 * MIB) as store:
        for number in range(10):
            body = manifest_of(note=f"{number}" * (4 * MIB - 100))
            digest = Digest.of(body)
            for _ in range(number + 3):
                store.popularity.count_request(digest)
            with suppress(StorageError):
                await store.put_manifest(digest, ManifestRecord(OCI_MANIFEST, body))
            assert bytes_on_disk(tmp_path) <= 32 * MIB


async def test_request_counts_of_much_content_keep_the_log_within_the_allowance(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 64 * MIB) as store:
        for number in range(20_000):
            store.popularity.count_request(Digest.of(str(number).encode()))
        await store.popularity.flush()
        assert (tmp_path / "store/cache.db-wal").stat().st_size <= ALLOWANCE


# -- any interleaving

SMALL, LARGE = 12, 4
SIZES = [280_000] * SMALL + [1_100_000, 1_700_000, 2_300_000, 2_900_000]
LAYERS = [random_bytes(size, number) for number, size in enumerate(SIZES)]
NAMES = st.sampled_from(["put", "put", "unsized", "give up", "read", "read", "read", "remove", "manifest", "shrink"])
OPERATIONS = st.lists(
    st.lists(st.tuples(NAMES, st.integers(0, SMALL + LARGE - 1), st.integers(0, 5)), min_size=1, max_size=6),
    min_size=3,
    max_size=6,
)
"""For each user a list of operations: which content, how often it is requested, and how long it is read."""


class Users:
    """Users of one store at the same time; the usage is checked after each of their steps."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.directory = directory
        remove = store.remove

        async def slow(digest: Digest) -> None:
            await remove(digest)
            await asyncio.sleep(0.002)  # other users run between two removals

        store.remove = slow  # type: ignore[method-assign]

    def check(self) -> None:
        content = bytes_on_disk(self.directory) - self.store.index.opened().bytes
        assert content <= CAP - ALLOWANCE + BLOCK * len(files_below(self.directory)), (
            "content uses space that is reserved for the index"
        )
        assert bytes_on_disk(self.directory) <= CAP

    async def work(self, operations: list[tuple[str, int, int]]) -> None:
        for name, number, pauses in operations:
            self.check()
            with suppress(StorageError):
                await getattr(self, name.replace(" ", "_"))(number, pauses)
            self.check()

    async def put(self, number: int, pauses: int, *, sized: bool = True, commit: bool = True) -> None:
        store, data = self.store, LAYERS[number]
        for _ in range(5 * (pauses + 2)):
            store.popularity.count_request(Digest.of(data))
        staged = await store.stage(Digest.of(data), len(data) if sized else 0)
        try:
            for start in range(0, len(data), 500_000):
                part = data[start : start + 500_000]
                await store.extend(staged, staged.written + len(part))
                staged.write(part)
                self.check()
                await asyncio.sleep(0)
            if commit:
                await store.commit(staged)
        finally:
            store.finish(staged)

    async def unsized(self, number: int, pauses: int) -> None:
        await self.put(number, pauses, sized=False)

    async def give_up(self, number: int, pauses: int) -> None:
        await self.put(number, pauses, commit=False)

    async def read(self, number: int, pauses: int) -> None:
        await asyncio.sleep(pauses * 0.003)
        opened = []
        for layer in LAYERS[number : number + 5]:
            blob = await self.store.open_blob(Digest.of(layer))
            if blob is not None:
                opened.append((blob, layer))
        await asyncio.sleep(pauses * 0.01)
        for blob, layer in opened:
            assert os.pread(blob.fd, blob.size, 0) == layer
            blob.close()

    async def remove(self, number: int, pauses: int) -> None:
        await self.store.remove(Digest.of(LAYERS[number]))

    async def manifest(self, number: int, pauses: int) -> None:
        body = manifest_of(note="x" * SIZES[number])
        await self.store.put_manifest(Digest.of(body), ManifestRecord(OCI_MANIFEST, body))

    async def shrink(self, number: int, pauses: int) -> None:
        self.store.capacity.max_bytes = CAP - number * 100_000
        await self.store.maintain()
        self.store.capacity.max_bytes = CAP


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OPERATIONS)
def test_cap_and_usage_are_correct_in_any_interleaving(operations_by_user: list[list[tuple[str, int, int]]]) -> None:
    async def play(directory: Path) -> None:
        async with opened_store(directory, CAP) as store:
            users = Users(store, directory)
            for layer in LAYERS[:SMALL]:
                await put_blob(store, layer)
            async with asyncio.TaskGroup() as tasks:
                for operations in operations_by_user:
                    tasks.create_task(users.work(operations))
            assert store.usage.reserved == 0
            assert store.usage.used == store.usage.stored
            assert set(store.capacity.retention.stored) == store.usage.sizes.keys()
            assert store.capacity.retention.bytes == store.usage.stored
            blobs = [size for digest, size in store.usage.sizes.items() if digest not in store.usage.children]
            assert sorted(blobs) == sorted(path.stat().st_size for path in files_below(directory / "store/blobs"))

    directory = Path(tempfile.mkdtemp(prefix="cap-"))
    try:
        asyncio.run(play(directory))
    finally:
        shutil.rmtree(directory)
