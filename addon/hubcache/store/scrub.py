"""The slow verification of all stored content, which finds what a disk gives back wrong before clients do.

In the order of digests, which has nothing to do with who asks for what, and again from the start when it is through. It
must not be felt: one object at a time, in pieces, with pauses between them, in a thread of its own; nothing is open or
held while it pauses. (An I/O priority would need a system call that Python does not have, and many schedulers ignore
it; a disk that is read for a tenth of the time has room for others without.)
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from heapq import nsmallest
from pathlib import Path

from ..oci.digest import Digest
from ..oci.errors import ContentDamaged, StorageError
from .file_check import FileCheck
from .store import Store

_LOOK_SECONDS = 5.0
"""How soon a doubted blob, a new pace or new content is seen."""

_WITHIN_A_FILE = 8 << 20
"""Bytes per second at which a file is read at least, for one must be read to its end before the process is."""

_URGENT = 32 << 20
"""Bytes per second after an unclean stop, until all was verified once."""

_OBJECT = 128 << 10
"""Bytes that an object counts as at least: finding and opening it takes as long as reading these."""

_AT_ONCE = 1000
"""Objects that are put in order at once."""

_SAVE_SECONDS = 60.0

_REST_SECONDS = 3600.0
"""Between two rounds at a given rate: it would else read a small store again and again."""


class Scrub:
    """`period` is the time in which all is verified (seconds), `rate` how much at most (bytes per second); with neither
    only what is doubted is verified. Both may be changed at any time. `failed` is told of what the store cannot do.
    """

    def __init__(
        self, store: Store, failed: Callable[[StorageError], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.period: float | None = None
        self.rate: float | None = None
        self._store = store
        self._failed = failed
        self._clock = clock
        self._position = ""
        self._queue: list[Digest] = []
        """What comes next, the first last."""
        self._left = 0
        """How many there are until the end of the round."""
        self._credit = 0.0
        self._rests_until = 0.0
        self._counted_at = clock()
        self._saved_at = clock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on where the last process ended."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop at once: after the piece that is being read."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown()
        if self._position:
            try:
                await self._save()
            except StorageError as error:
                self._failed(error)

    async def _run(self) -> None:
        loaded = False
        while True:
            try:
                if self._store.is_open:
                    if not loaded:
                        self._load()
                        loaded = True
                    await self.look()
            except StorageError as error:
                self._failed(error)
                await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.sleep(self._wait())

    async def look(self) -> None:
        """Verify what is doubted, and the next object if it is due."""
        for digest in self._store.inspector.doubted:
            try:
                blob = await self._store.open_blob(digest)  # which verifies it
            except StorageError as error:  # others can be verified all the same
                self._failed(error)
                continue
            if blob is not None:
                blob.close()
            if self._store.blob_size(digest) is None:  # else it is still doubted, unless it was found good
                self._store.inspector.trust(digest)
        if self._is_due():
            await self._next()

    def _is_due(self) -> bool:
        rested = self.rate is None or self._clock() >= self._rests_until
        return rested and self._speed() > 0 and self._earned() >= 0

    async def _next(self) -> None:
        if not self._queue:
            content, position = list(self._store.ledger.sizes), self._position
            loop = asyncio.get_running_loop()
            self._queue, self._left = await loop.run_in_executor(self._thread, _ahead, content, position)
        if not self._queue:
            await self._end_round()
            return
        digest = self._queue.pop()
        self._left -= 1
        await self._verify(digest)
        self._position = str(digest)
        done = self._store.scrubbed
        done.progress = max(0.0, 1.0 - self._left / max(1, len(self._store.ledger.sizes)))
        if self._clock() - self._saved_at >= _SAVE_SECONDS:
            await self._save()

    async def _end_round(self) -> None:
        done = self._store.scrubbed
        if not self._store.ledger.sizes:
            self._credit = -_LOOK_SECONDS * self._speed()
            return
        self._position, done.finished_at, done.progress = "", time.time(), 0.0
        self._store.unclean = False
        self._rests_until = self._clock() + _REST_SECONDS
        await self._save()

    # -- one object ---------------------------------------------------------------------------------------------

    async def _verify(self, digest: Digest) -> None:
        size, path = self._store.ledger.sizes.get(digest), self._store.blob_path(digest)
        if size is None:
            return
        self._credit -= max(size, _OBJECT)
        if path is not None:
            await self._verify_file(digest, path, size)
        elif self._store.manifest(digest) is not None:  # which verifies it
            self._store.scrubbed.bytes += size
        self._store.scrubbed.objects += 1

    async def _verify_file(self, digest: Digest, path: Path, size: int) -> None:
        proof, more, loop = FileCheck(path, digest, size, from_disk=True), True, asyncio.get_running_loop()
        while more and digest in self._store.ledger.sizes:
            before = proof.at
            try:
                more = await loop.run_in_executor(self._thread, proof.step)
            except FileNotFoundError:
                if self._store.blob_path(digest) == path:  # else it was evicted, and perhaps fetched again
                    await self._store.condemn(digest, path, "is gone")
                return
            except ContentDamaged as error:
                await self._store.condemn(digest, path, str(error))
                return
            except OSError as error:
                raise StorageError(f"cannot verify a stored blob: {error.strerror or error}") from error
            read = proof.at - before
            self._store.scrubbed.bytes += read
            if more:
                await asyncio.sleep(read / (self._speed_within() or _WITHIN_A_FILE))

    # -- pace ---------------------------------------------------------------------------------------------------

    def _speed(self) -> float:
        """Bytes per second on average; 0 when nothing is verified unasked."""
        if self.rate is not None:
            return self.rate
        if self.period is None:
            return 0.0
        ledger = self._store.ledger
        speed = (ledger.stored + len(ledger.sizes) * _OBJECT) / self.period
        return max(speed, _URGENT) if self._store.unclean else speed

    def _speed_within(self) -> float:
        """Bytes per second within one file."""
        return self._speed() if self.rate is not None else max(self._speed(), _WITHIN_A_FILE)

    def _earned(self) -> float:
        """Bytes that may be read now, or (negative) that were read ahead of time."""
        now = self._clock()
        self._credit = min(0.0, self._credit + (now - self._counted_at) * self._speed())
        self._counted_at = now
        return self._credit

    def _wait(self) -> float:
        """Seconds until there is something to do, or to look for."""
        if self._is_due() and self._store.is_open:
            return 0.0
        debt, speed = -self._earned(), self._speed()
        return min(_LOOK_SECONDS, debt / speed) if debt > 0 and speed > 0 else _LOOK_SECONDS

    # -- across restarts ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        """An unclean stop begins a new round, unless this one began with one."""
        store = self._store
        position, store.scrubbed.finished_at, was_unclean = _decode(store.scrub_state())
        self._position = position if was_unclean or not store.unclean else ""
        store.unclean = store.unclean or was_unclean

    async def _save(self) -> None:
        self._saved_at = self._clock()
        state = [self._position, self._store.scrubbed.finished_at, self._store.unclean]
        await self._store.put_scrub_state(json.dumps(state))


def _decode(text: str | None) -> tuple[str, float | None, bool]:
    """Position, end of the last round and whether this one began with an unclean stop, as they were saved."""
    try:
        position, finished_at, unclean = json.loads(text or "")
        return str(position), None if finished_at is None else float(finished_at), unclean is True
    except (ValueError, TypeError):
        return "", None, False


def _ahead(content: list[Digest], position: str) -> tuple[list[Digest], int]:
    """Some that come after the position, the next one last, and how many come after it in all.

    Sorting all of 100,000 would hold the interpreter, and so the event loop, for a tenth of a second.
    """
    after = [digest for digest in content if digest > position]
    return nsmallest(_AT_ONCE, after)[::-1], len(after)
