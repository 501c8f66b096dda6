"""A process that stores, evicts and verifies content, and kills itself at a given step.

`python -m soaklib.victim DIRECTORY SEED STEP`. A step is one executed line of the store's code or of diskcache, in any
thread. So the process can die between any two lines of a commit, an eviction, a removal, a verification, a quarantine,
and of opening and closing the store.
"""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path
from types import CodeType

import diskcache.core
from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored, StorageError
from hubcache.oci.media import OCI_MANIFEST
from hubcache.store import store as store_module
from hubcache.store.scrub import Scrub
from hubcache.store.store import Store

CAPACITY = 8 << 20
"""Bytes of the store: only a few blobs fit, so that nearly every commit evicts."""

_BLOBS = 8
_DAMAGED = (2, 6)
"""Numbers of the blobs that get a flipped bit: one is found when it is opened, the other by the scrub."""

_RATE = 1 << 40
"""Bytes per second of the scrub; so high that it does not pause."""

_STORE = str(Path(store_module.__file__).parent)
_DISKCACHE = diskcache.core.__file__


class _ReportingStore(Store):
    """Reports each removal before it begins, because the process may die while it removes."""

    async def remove(self, digest: Digest) -> None:
        _report("removing", digest)
        await super().remove(digest)


def _report(event: str, digest: Digest) -> None:
    os.write(1, f"{event} {digest}\n".encode())


def content(seed: int, number: int) -> bytes:
    """The blob with this number."""
    chosen = random.Random(f"{seed}/{number}")
    return chosen.randbytes(chosen.randrange(50_000, 1_500_000))


def _count_steps(last: int) -> list[int]:
    """Count steps and kill the process at step `last` (0: never); the only item of the list is the count so far."""
    steps = [0]

    def step(code: CodeType, _line: int) -> object:
        if not (code.co_filename.startswith(_STORE) or code.co_filename == _DISKCACHE):
            return sys.monitoring.DISABLE
        steps[0] += 1
        if steps[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    sys.monitoring.use_tool_id(sys.monitoring.PROFILER_ID, "soak")
    sys.monitoring.register_callback(sys.monitoring.PROFILER_ID, sys.monitoring.events.LINE, step)
    sys.monitoring.set_events(sys.monitoring.PROFILER_ID, sys.monitoring.events.LINE)
    return steps


async def _store_blob(store: Store, data: bytes) -> Digest:
    digest = Digest.of(data)
    for _ in range(3):
        store.popularity.count_request(digest)
    staged = await store.stage(digest, len(data))
    try:
        for at in range(0, len(data), 256 << 10):
            staged.write(data[at : at + (256 << 10)])
        await store.commit(staged)
        _report("committed", digest)
    finally:
        store.finish(staged)
    return digest


async def _damage(store: Store, digest: Digest) -> None:
    """Flip a bit as a failing disk does: the size and the times of the file stay the same."""
    path = store.blob_path(digest)
    assert path is not None
    _report("damaging", digest)
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


async def _find_damage(store: Store, digest: Digest, number: int) -> None:
    """Find the damage: by opening the blob while it is under suspicion, or by the scrub."""
    if number == _DAMAGED[0]:
        store.inspector.require_check(digest)
        assert await store.open_blob(digest) is None
    else:
        scrub = Scrub(store, _fail)
        scrub.rate = _RATE
        while store.has(digest):
            await scrub.step()
        await scrub.close()
    assert not store.has(digest)


def _fail(error: StorageError) -> None:
    raise error


async def _run(directory: Path, seed: int) -> None:
    store = _ReportingStore(directory, CAPACITY)
    store.capacity.min_free = 0
    store.open()
    try:
        for number in range(_BLOBS):
            data = content(seed, number)
            body = b'{"layers": [{"digest": "%s", "size": %d}]}' % (Digest.of(data).encode(), len(data))
            try:
                digest = await _store_blob(store, data)
                if number in _DAMAGED:
                    await _damage(store, digest)
                    await _find_damage(store, digest, number)
                await store.put_manifest(Digest.of(body), ManifestRecord(OCI_MANIFEST, body))
                _report("committed", Digest.of(body))
            except NotStored:
                continue  # the policy prefers what is stored
            await store.maintain()
            if number % 3 == 0:
                await store.remove(Digest.of(body))
    finally:
        await store.close()


def main() -> None:
    """Run, and report the number of steps at the end."""
    directory, seed, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    steps = _count_steps(step)
    asyncio.run(_run(directory, seed))
    os.write(1, f"steps {steps[0]}\n".encode())


if __name__ == "__main__":
    main()
