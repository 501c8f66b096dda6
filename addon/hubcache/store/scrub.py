"""The scrub: slow verification of all stored content, which finds damage on the disk before clients do.

It goes through the digests in order, which is unrelated to what clients request, and then begins again. Clients must
not notice it: it verifies one object at a time, in pieces, with pauses between them, in a separate thread, and nothing
is open or protected while it pauses. (An I/O priority would need a system call that Python does not offer, and many
schedulers ignore it; a disk that is read for a tenth of the time can serve others without one.)
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from heapq import nsmallest

from ..oci.digest import Digest
from ..oci.errors import StorageError
from .content_check import verify_content
from .store import Store

_ROW = "scrub"
"""Row of the position, for the next start."""

_POLL_SECONDS = 5.0
"""Seconds within which a required check, a changed speed or new content is noticed."""

_MIN_FILE_SPEED = 8 << 20
"""Lowest speed within a file, in bytes per second: at a lower one, the process might end before the file is read."""

_URGENT_SPEED = 32 << 20
"""Bytes per second after an unclean stop, until everything was verified once."""

_MIN_OBJECT_BYTES = 128 << 10
"""Smallest size that an object counts as, in bytes: finding and opening it takes as long as reading this much."""

_QUEUE_LENGTH = 1000
"""Number of objects that are sorted at once."""

_SAVE_SECONDS = 60.0

_REST_SECONDS = 3600.0
"""Seconds between two rounds when `rate` is set: a small store would otherwise be read again and again."""


class Scrub:
    """Verifies the content of a store. `period` is the time in which everything is verified (seconds), `rate` the speed
    (bytes per second); with neither, only content for which a check is required is verified. Both may be changed at any
    time. `failed` is called with errors of the store.
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
        """The next objects in reverse order: the last one is verified first."""
        self._remaining = 0
        """Objects until the end of the round."""
        self._credit = 0.0
        """Bytes that may be read, or (negative) that were read ahead of time, as of `_counted_at`."""
        self._rests_until = 0.0
        self._counted_at = clock()
        self._saved_at = clock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Continue where the last process ended."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop after the piece that is being read."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown()
        if self._position or self._store.scrub_status.finished_at:  # saving the end of a round may have been cancelled
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
                    await self.step()
            except StorageError as error:
                self._failed(error)
                await asyncio.sleep(_POLL_SECONDS)
            await asyncio.sleep(self._wait())

    async def step(self) -> None:
        """Verify content for which a check is required, and the next object if it is due."""
        for digest in self._store.inspector.required:
            try:
                blob = await self._store.open_blob(digest)  # which verifies it
            except StorageError as error:  # others can be verified nevertheless
                self._failed(error)
                continue
            if blob is not None:
                blob.close()
            if self._store.blob_size(digest) is None:  # it was removed; if stored, only a successful check clears it
                self._store.inspector.clear(digest)
        if self._is_due():
            await self._next()

    def _is_due(self) -> bool:
        rested = self.rate is None or self._clock() >= self._rests_until
        return rested and self._speed() > 0 and self._update_credit() >= 0

    async def _next(self) -> None:
        if not self._queue:
            content, position = list(self._store.usage.sizes), self._position
            loop = asyncio.get_running_loop()
            self._queue, self._remaining = await loop.run_in_executor(self._thread, _following, content, position)
        if not self._queue:
            await self._end_round()
            return
        digest = self._queue.pop()
        self._remaining -= 1
        await self._verify(digest)
        self._position = str(digest)
        status = self._store.scrub_status
        status.progress = max(0.0, 1.0 - self._remaining / max(1, len(self._store.usage.sizes)))
        if self._clock() - self._saved_at >= _SAVE_SECONDS:
            await self._save()

    async def _end_round(self) -> None:
        status = self._store.scrub_status
        if not self._store.usage.sizes:
            self._credit = -_POLL_SECONDS * self._speed()
            return
        self._position, status.finished_at, status.progress = "", time.time(), 0.0
        self._store.unclean = False
        self._rests_until = self._clock() + _REST_SECONDS
        await self._save()

    # -- one object ---------------------------------------------------------------------------------------------

    async def _verify(self, digest: Digest) -> None:
        size = self._store.usage.sizes.get(digest)
        if size is None:
            return
        self._credit -= max(size, _MIN_OBJECT_BYTES)
        await verify_content(self._store, digest, self._thread, self._count)
        self._store.scrub_status.objects += 1

    def _count(self, read: int) -> float:
        """Count bytes that were read; return the seconds until the next piece of the same file."""
        self._store.scrub_status.bytes += read
        return read / (self._file_speed() or _MIN_FILE_SPEED)

    # -- pace ---------------------------------------------------------------------------------------------------

    def _speed(self) -> float:
        """Return the average bytes per second; 0 when only required checks are made."""
        if self.rate is not None:
            return self.rate
        if self.period is None:
            return 0.0
        usage = self._store.usage
        speed = (usage.stored + len(usage.sizes) * _MIN_OBJECT_BYTES) / self.period
        return max(speed, _URGENT_SPEED) if self._store.unclean else speed

    def _file_speed(self) -> float:
        """Return the bytes per second within one file."""
        return self._speed() if self.rate is not None else max(self._speed(), _MIN_FILE_SPEED)

    def _update_credit(self) -> float:
        """Return the bytes that may be read now, or (negative) that were read ahead of time."""
        now = self._clock()
        self._credit = min(0.0, self._credit + (now - self._counted_at) * self._speed())
        self._counted_at = now
        return self._credit

    def _wait(self) -> float:
        """Return the seconds until the next step."""
        if self._is_due() and self._store.is_open:
            return 0.0
        debt, speed = -self._update_credit(), self._speed()
        return min(_POLL_SECONDS, debt / speed) if debt > 0 and speed > 0 else _POLL_SECONDS

    # -- across restarts ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Load the position. An unclean stop begins a new round, unless the current one began after one."""
        store = self._store
        position, store.scrub_status.finished_at, was_unclean = _decode(store.index.read(_ROW))
        self._position = position if was_unclean or not store.unclean else ""
        store.unclean = store.unclean or was_unclean

    async def _save(self) -> None:
        self._saved_at = self._clock()
        state = [self._position, self._store.scrub_status.finished_at, self._store.unclean]
        index = self._store.index.opened()
        await self._store.index.write(lambda: index.set(_ROW, json.dumps(state)))


def _decode(row: object) -> tuple[str, float | None, bool]:
    """Return position, end of the last round, and whether the current one began after an unclean stop."""
    try:
        position, finished_at, unclean = json.loads(row if isinstance(row, str) else "")
        return str(position), None if finished_at is None else float(finished_at), unclean is True
    except (ValueError, TypeError):
        return "", None, False


def _following(content: list[Digest], position: str) -> tuple[list[Digest], int]:
    """Return the first digests after the position, the next one last, and the number of all digests after it.

    Sorting all of 100,000 would block the interpreter, and so the event loop, for a tenth of a second.
    """
    after = [digest for digest in content if digest > position]
    return nsmallest(_QUEUE_LENGTH, after)[::-1], len(after)
