"""Runs fills: one download per digest for any number of clients. Stages, hashes, verifies, then commits or cancels.

`unread_fills` decides which fills continue without readers, `fill_slots` how many run at the same time.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ..oci.digest import Digest, Verifier
from ..oci.errors import BadUpstream, FillCancelled, RegistryError, StorageError, Unavailable
from ..store.store import Store
from .blob_body import BlobDownload
from .breaker import CircuitOpen
from .download_connection import BUFFER
from .fill import Fill
from .fill_slots import FillSlots, Ticket
from .observer import Observer
from .unread_fills import UnreadFills

logger = logging.getLogger("hubcache")

type OpenBlob = Callable[[int], AbstractAsyncContextManager[BlobDownload]]
"""Opens the upstream blob at the given byte."""

type _Task = asyncio.Task[RegistryError | StorageError | None]

_ATTEMPTS_TO_OPEN = 3
_OPEN_SECONDS = 45.0
"""No further attempt to open after this time: each may cost a time-out, and clients wait one to five minutes."""
_ATTEMPTS_WITHOUT_PROGRESS = 5
_PROGRESS_BYTES = 1 << 20
"""An attempt that brought this many bytes does not count as a failure. With a smaller bound, an upstream that breaks
off after each packet would be sent a million requests for a gigabyte."""
_BACKOFF_SECONDS = 0.2
_JOIN_SECONDS = 1.0
"""A client that has received a blob's size begins to read its bytes within this time."""


@dataclass(frozen=True, slots=True)
class FillProgress:
    """Progress of a fill in bytes; `size` is None before it is known, `started` in seconds since the epoch.

    `is_waiting`: other fills have all slots.
    """

    digest: Digest
    size: int | None
    written: int
    readers: int
    registry: str
    repository: str
    started: float
    is_waiting: bool


class _Job:
    """The task that runs a fill, and its slot."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.task: _Task | None = None
        self._is_busy = False

    async def uncancelled[Value](self, work: Awaitable[Value]) -> Value:
        """Await work that must not be cancelled: a thread writes to the file, or content is evicted for it."""
        self._is_busy = True
        try:
            return await work
        finally:
            self._is_busy = False

    def cancel(self) -> None:
        """Cancel the task, now or after work that must not be cancelled."""
        if self.task is not None and not self._is_busy:
            self.task.cancel()


class Fills:
    """All fills of this process; `storage_failed` receives the reason when content cannot be stored."""

    def __init__(self, store: Store, observer: Observer, storage_failed: Callable[[StorageError], None]) -> None:
        self._store = store
        self._observer = observer
        self._storage_failed = storage_failed
        self.on_ended: Callable[[Fill], None] = lambda _: None
        """Called when a fill has ended, whether its blob is stored or not."""
        self._running: dict[Digest, Fill] = {}
        self._jobs: dict[Fill, _Job] = {}
        self._tasks: dict[_Task, Fill] = {}
        self._slots = FillSlots()
        self._unread = UnreadFills(store.popularity.is_admitted, self._cancel_fill)

    def get(self, digest: Digest, requester: str | None = None) -> Fill | None:
        """Return the running fill of a digest, or None. While the fill waits for a slot, it also waits in the queue of
        `requester`."""
        fill = self._running.get(digest)
        if fill is not None and requester is not None:
            self._slots.join(self._jobs[fill].ticket, requester)
        return fill

    def has_free_slot(self, requester: str = "") -> bool:
        """Whether a fill that is started now for `requester` begins at once."""
        return self._slots.has_free(requester)

    def start(
        self,
        digest: Digest,
        size: int | None,
        open_blob: OpenBlob,
        requester: str = "",
        origin: str = "",
        verified: Callable[[], Awaitable[None]] | None = None,
        repository: str = "",
    ) -> Fill:
        """Return the running fill of a digest, or start one.

        `size` is the size that a manifest states; `requester` the address of the client, or `PREFETCH`; `origin` the
        registry's host, `repository` the name there. `verified` is called when the digest is verified, before the blob
        is in the store.
        """
        fill = self.get(digest, requester)
        if fill is None:
            fill = self._running[digest] = Fill(digest, origin, self._readers_changed, repository)
            job = self._jobs[fill] = _Job(self._slots.request(requester))
            if job.ticket.is_waiting:
                self._unread.free_slot()
            self._observer.fills_changed(len(self._running))
            task = job.task = asyncio.create_task(self._run(fill, job, size, open_blob, verified))
            self._tasks[task] = fill
            task.add_done_callback(lambda done: self._ended(done, fill, job))
        return fill

    def progress(self) -> list[FillProgress]:
        """Return the progress of all running fills."""
        return [
            FillProgress(
                *(fill.digest, fill.size, fill.written, fill.readers, fill.origin, fill.repository, fill.started),
                is_waiting=self._jobs[fill].ticket.is_waiting,
            )
            for fill in self._running.values()
        ]

    def _readers_changed(self, fill: Fill) -> None:
        """Resume a fill that has a reader again; let one without readers continue, pause it or cancel it."""
        job = self._jobs.get(fill)
        if job is None or fill.verified:
            return
        if fill.readers:
            self._unread.remove(fill)
        elif job.ticket.is_waiting:  # nothing has arrived that would be lost
            self._cancel_fill(fill)
        else:
            self._unread.add(fill)
            if self._slots.has_waiting_client:
                self._unread.free_slot()

    def _cancel_fill(self, fill: Fill) -> None:
        """Cancel a fill without readers."""
        if not fill.verified and self._running.get(fill.digest) is fill:
            del self._running[fill.digest]  # later requests get a new one
            self._end(fill, FillCancelled("no client waits for the blob any more"))

    def _end(self, fill: Fill, error: RegistryError) -> None:
        fill.error = error
        self._unread.remove(fill)
        self._jobs[fill].cancel()

    def cancel_unread(self) -> None:
        """Cancel all fills that no client waits for, when the program stops."""
        now = time.monotonic()
        for fill in list(self._running.values()):
            if not fill.readers and now - fill.unread_since >= _JOIN_SECONDS:
                self._cancel_fill(fill)

    async def close(self) -> None:
        """Cancel unverified fills and remove their staged files; verified ones are committed."""
        for fill in self._tasks.values():
            if not fill.verified:
                self._end(fill, Unavailable("the cache is shutting down"))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(
        self,
        fill: Fill,
        job: _Job,
        size: int | None,
        open_blob: OpenBlob,
        verified: Callable[[], Awaitable[None]] | None,
    ) -> RegistryError | StorageError | None:
        """Download the blob into the store; returns the error when that fails."""
        try:
            await asyncio.shield(job.ticket.granted)  # a slot may still be granted to a task that was just cancelled
            if size is not None:  # no connection for a blob that will not be stored
                fill.staged = await job.uncancelled(self._store.stage(fill.digest, size))
            await self._fetch(fill, job, size, open_blob)
            if verified is not None:
                await verified()
            assert fill.staged is not None
            await self._store.commit(fill.staged)
        except (RegistryError, StorageError) as error:
            return error
        return None

    def _ended(self, task: _Task, fill: Fill, job: _Job) -> None:
        """Clean up. Not a part of `_run`, which does not run at all when its task is cancelled before it starts."""
        del self._tasks[task]
        del self._jobs[fill]
        defect = None if task.cancelled() else task.exception()
        if defect is not None:
            logger.error("hubcache: fetching %s failed", fill.digest, exc_info=defect)
        if task.cancelled() or defect is not None:  # else its readers would wait forever
            fill.error = fill.error or Unavailable("internal error")
        else:
            failure = task.result()
            fill.error = fill.error or (failure and failure.without_traceback())
            fill.stored = fill.error is None
        if isinstance(fill.error, StorageError):
            self._storage_failed(fill.error)
        if self._running.get(fill.digest) is fill:
            del self._running[fill.digest]
        self._slots.release(job.ticket)
        self._unread.remove(fill)
        try:
            if fill.staged is not None:
                self._store.finish(fill.staged)
        except StorageError as error:
            self._storage_failed(error)
        fill.notify()
        self._observer.fills_changed(len(self._running))
        self._observer.fill_ended(fill.digest, fill.error)
        self.on_ended(fill)

    async def _fetch(self, fill: Fill, job: _Job, size: int | None, open_blob: OpenBlob) -> None:
        """Download and verify the whole blob; a transfer that breaks off is resumed where it broke off."""
        verifier = Verifier(fill.digest, size)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        failures = mark = 0
        while True:
            await fill.wait_while_paused()
            try:
                async with open_blob(verifier.received) as body:
                    await self._check_size(fill, job, verifier, body)
                    await self._receive(fill, job, verifier, body)
                if verifier.size is not None and verifier.received < verifier.size:
                    raise Unavailable("upstream ended the transfer early")
                break
            except Unavailable as error:
                if isinstance(error, CircuitOpen) and await error.wait_for_probe():
                    continue  # no request was sent
                if verifier.received >= mark + _PROGRESS_BYTES:
                    failures, mark = 0, verifier.received
                failures += 1
                if failures >= (_ATTEMPTS_WITHOUT_PROGRESS if fill.size is not None else _ATTEMPTS_TO_OPEN):
                    raise
                if fill.size is None and loop.time() - begun > _OPEN_SECONDS:
                    raise
                await asyncio.sleep(_BACKOFF_SECONDS * 2 ** (failures - 1))
        verifier.finish()
        if fill.size is None:
            fill.size = verifier.received
        fill.verified = True
        fill.advance(verifier.received)
        fill.notify()

    async def _check_size(self, fill: Fill, job: _Job, verifier: Verifier, body: BlobDownload) -> None:
        """Check the size that the upstream states, and reserve capacity for it the first time."""
        if fill.size is None:  # later bodies, after the transfer broke off, do not change what readers have recorded
            fill.answered_at = body.answered_at
        if verifier.size is None:
            verifier.size = body.size
        elif body.size is not None and body.size != verifier.size:
            raise BadUpstream(
                "upstream states another size than the manifest",
                {"digest": str(fill.digest), "expected": verifier.size, "got": body.size},
            )
        if fill.staged is None:
            fill.staged = await job.uncancelled(self._store.stage(fill.digest, verifier.size or 0))
            fill.raise_error()  # it may have been cancelled during this wait, and the first bytes may arrive late
        if fill.size is None and verifier.size is not None and fill.staged.reserved >= verifier.size:
            fill.size = verifier.size
            fill.notify()

    async def _receive(self, fill: Fill, job: _Job, verifier: Verifier, body: BlobDownload) -> None:
        """Have a thread receive, hash and write the body, until it has ended."""
        staged, skip = fill.staged, verifier.received - body.start  # it may have ignored the Range and begun at 0
        assert staged is not None

        def write(data: memoryview) -> bool:
            nonlocal skip
            skipped = min(skip, len(data))
            skip -= skipped
            verifier.update(data[skipped:])
            staged.write(data[skipped:])
            return not fill.is_paused and (fill.size is not None or staged.reserved >= verifier.received + BUFFER)

        has_ended = False
        while not has_ended:
            if fill.size is None:
                await job.uncancelled(self._store.extend(staged, verifier.received + BUFFER))
                fill.raise_error()  # as in `_check_size`
            has_ended = await body.receive(write, lambda: fill.advance(staged.written))
            await fill.wait_while_paused()
