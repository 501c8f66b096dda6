"""After any sequence of operations, the usage matches the disk and the cap holds (a stateful test)."""

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.oci.media import OCI_MANIFEST
from hubcache.store.capacity import ALLOWANCE
from hubcache.store.staging import Staged
from hubcache.store.store import Store
from hubcache.store.stored_blob import StoredBlob
from hubcache.store.usage import size_on_disk
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from support.standin import random_bytes
from support.stores import MIB, bytes_on_disk, files_below, manifest_of

CAPACITY = ALLOWANCE + 2 * MIB
LAYERS = [random_bytes(size, size) for size in (0, 1, 90_000, 400_000, 700_000, 1_100_000, 2_500_000)]
NUMBERS = st.integers(0, len(LAYERS) - 1)


def digest_of_key(key: str) -> Digest:
    """Return the digest in a row's key."""
    return Digest.parse(key.partition("/")[2])


class StoreMachine(RuleBasedStateMachine):
    """Operations on a store in any order: stage, write, commit, cancel, read, remove, restart."""

    staged = Bundle("staged")
    opened = Bundle("opened")
    digests = Bundle("digests")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="store-"))
        self.runner = asyncio.Runner()
        self.now = 1e9
        self.growing: list[Staged] = []
        self.reading: dict[int, tuple[StoredBlob, bytes]] = {}
        self.open_store()

    def open_store(self) -> None:
        self.store = Store(self.directory, CAPACITY, lambda: self.now)
        self.store.open()

    def run[T](self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run one operation; a full store may refuse it."""
        try:
            return self.runner.run(work)
        except StorageError:
            return None

    @rule(target=staged, number=NUMBERS, sized=st.booleans())
    def stage(self, number: int, sized: bool) -> tuple[Staged, int] | None:
        data = LAYERS[number]
        staged = self.run(self.store.stage(Digest.of(data), len(data) if sized else 0))
        if staged is None:
            return None
        self.growing.append(staged)
        return staged, number

    @rule(one=staged, count=st.integers(1, 600_000))
    def write(self, one: tuple[Staged, int] | None, count: int) -> None:
        if one is not None and one[0] in self.growing:
            staged, data = one[0], LAYERS[one[1]]
            part = data[staged.written : staged.written + count]
            self.run(self.store.extend(staged, staged.written + len(part)))
            if staged.written + len(part) <= staged.reserved:
                staged.write(part)

    @rule(target=digests, one=consumes(staged))
    def commit(self, one: tuple[Staged, int] | None) -> Digest:
        if one is None or one[0] not in self.growing:
            return Digest.of(b"")
        staged, data = one[0], LAYERS[one[1]]
        rest = data[staged.written :]
        self.run(self.store.extend(staged, len(data)))
        if len(data) <= staged.reserved:
            staged.write(rest)
            self.run(self.store.commit(staged))
        self.store.finish(staged)
        self.growing.remove(staged)
        return staged.digest

    @rule(one=consumes(staged))
    def cancel(self, one: tuple[Staged, int] | None) -> None:
        if one is not None and one[0] in self.growing:
            self.store.finish(one[0])
            self.growing.remove(one[0])

    @rule(target=digests, layers=st.lists(NUMBERS, max_size=3), note=st.sampled_from([0, 50_000]))
    def put_manifest(self, layers: list[int], note: int) -> Digest:
        below = [(Digest.of(LAYERS[number]), len(LAYERS[number])) for number in layers]
        body = manifest_of(*below, note="a" * note)
        self.run(self.store.put_manifest(Digest.of(body), ManifestRecord(OCI_MANIFEST, body)))
        return Digest.of(body)

    @rule(digest=digests)
    def count_request(self, digest: Digest) -> None:
        self.now += 1.0
        self.store.popularity.count_request(digest)

    @rule(target=opened, number=NUMBERS)
    def open_blob(self, number: int) -> int | None:
        data = LAYERS[number]
        blob = self.run(self.store.open_blob(Digest.of(data)))
        if blob is None:
            assert not self.store.has(Digest.of(data))
            return None
        self.reading[id(blob)] = (blob, data)
        return id(blob)

    @rule(one=consumes(opened))
    def close_blob(self, one: int | None) -> None:
        if one in self.reading:
            blob, data = self.reading.pop(one)
            assert os.pread(blob.fd, len(data) + 1, 0) == data
            blob.close()

    @rule(digest=digests)
    def remove(self, digest: Digest) -> None:
        self.run(self.store.remove(digest))
        assert not self.store.has(digest)

    @rule()
    def restart(self) -> None:
        self.stop()
        sizes = dict(self.store.usage.sizes)
        self.open_store()
        assert self.store.usage.sizes == sizes

    def stop(self) -> None:
        for staged in self.growing:
            self.store.finish(staged)
        for blob, _ in self.reading.values():
            blob.close()
        self.growing, self.reading = [], {}
        self.runner.run(self.store.close())

    @invariant()
    def usage_rows_and_files_match(self) -> None:
        with closing(sqlite3.connect(self.directory / "store/cache.db")) as connection:
            found = connection.execute("SELECT key, value, size, filename FROM Cache").fetchall()
        files = {
            str(path.relative_to(self.directory / "store")): path
            for path in files_below(self.directory / "store/blobs")
        }
        rows = {digest_of_key(key): (size, name) for key, _, size, name in found if key.startswith("blob/")}
        manifests = {
            digest_of_key(key): len(ManifestRecord.decode(value).body)
            for key, value, _, _ in found
            if key.startswith("manifest/")
        }
        assert sorted(name for _, name in rows.values()) == sorted(files), (
            "a row without its file, or a file without its row"
        )
        for digest, (size, name) in rows.items():
            assert files[name].stat().st_size == size
            assert digest.matches(files[name].read_bytes())
        assert self.store.usage.sizes == {digest: size for digest, (size, _) in rows.items()} | manifests
        assert self.store.usage.stored == sum(map(size_on_disk, self.store.usage.sizes.values()))
        assert {digest for digest in self.store.usage.sizes if digest in self.store.capacity.retention} == set(
            self.store.usage.sizes
        ), "content that the policy does not know is never evicted"
        assert self.store.capacity.retention.bytes == self.store.usage.stored
        assert self.store.usage.reserved == sum(staged.reserved for staged in self.growing)

    @invariant()
    def cap_holds(self) -> None:
        assert bytes_on_disk(self.directory) <= CAPACITY

    def teardown(self) -> None:
        self.stop()
        self.runner.close()
        shutil.rmtree(self.directory)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
