"""Fills: one fetch per digest, however many ask. Stage, hash, verify, then commit or cancel.

A fill runs on when its clients leave, within bounds: see `unread`. How many run at the same time, and whose: `slots`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ..oci.digest import Digest, Verifier
from ..oci.errors import BadUpstream, FillCancelled, RegistryError, StorageError, Unavailable
from ..store.store import Store
from .breaker import CircuitOpen
from .fill import Fill
from .fill_slots import FillSlots, Ticket
from .observer import Observer
from .unread_fills import UnreadFills
from .upstream import BlobBody

logger = logging.getLogger("hubcache")

type OpenBlob = Callable[[int], AbstractAsyncContextManager[BlobBody]]
"""Opens the blob upstream from the given byte."""

type _Task = asyncio.Task[RegistryError | StorageError | None]

_ATTEMPTS_TO_OPEN = 3
_OPEN_SECONDS = 45.0
"""No further attempt to open after so long: each may cost a time-out, and clients wait for a minute to five."""
_ATTEMPTS_WITHOUT_PROGRESS = 5
_PROGRESS_BYTES = 1 << 20
"""An attempt that brought this much more is no failure. Any byte would not do: a gigabyte from an upstream that breaks
off after each packet would become a million requests."""
_BACKOFF_SECONDS = 0.2
_JOIN_SECONDS = 1.0
"""A client that has been told a blob's size begins to read its bytes within this time."""
_INLINE_BYTES = 64 << 10
"""Batches up to this are hashed on the loop; a hop to the worker thread costs more than hashing them."""


@dataclass(frozen=True, slots=True)
class FillProgress:
    """How far a fill is, in bytes; `size` is None before it is known."""

    digest: Digest
    size: int | None
    written: int
    readers: int


class _Job:
    """What works on a fill."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.task: _Task | None = None
        self._is_busy = False

    async def undisturbed[Value](self, work: Awaitable[Value]) -> Value:
        """Do what must not be cancelled: a thread writes to the file, or content is evicted for it."""
        self._is_busy = True
        try:
            return await work
        finally:
            self._is_busy = False

    def end(self) -> None:
        """Have it end, now or after what must not be cancelled."""
        if self.task is not None and not self._is_busy:
            self.task.cancel()


class Fills:
    """All fills of this process; `failed` is told why content could not be stored."""

    def __init__(self, store: Store, observer: Observer, failed: Callable[[StorageError], None]) -> None:
        self._store = store
        self._observer = observer
        self._failed = failed
        self._running: dict[Digest, Fill] = {}
        self._jobs: dict[Fill, _Job] = {}
        self._tasks: dict[_Task, Fill] = {}
        self._slots = FillSlots()
        self._unread = UnreadFills(store.popularity.is_admitted, self._give_up)
        self._hashing = ThreadPoolExecutor(2, thread_name_prefix="fill")

    def get(self, digest: Digest, asker: str | None = None) -> Fill | None:
        """The running fill of a digest, which from now on is `asker`'s, too."""
        fill = self._running.get(digest)
        if fill is not None and asker is not None:
            self._slots.join(self._jobs[fill].ticket, asker)
        return fill

    def start(
        self,
        digest: Digest,
        size: int | None,
        open_blob: OpenBlob,
        asker: str = "",
        origin: str = "",
        verified: Callable[[], Awaitable[None]] | None = None,
    ) -> Fill:
        """The running fill of a digest, or a new one. `size` is what a manifest says it must be; `asker` the address
        of the client that it is for, or `PREFETCH`; `origin` the registry. `verified` is told when the bytes are
        right, before they are in the store."""
        fill = self.get(digest, asker)
        if fill is None:
            fill = self._running[digest] = Fill(digest, origin, self._read)
            job = self._jobs[fill] = _Job(self._slots.ask(asker))
            if job.ticket.is_waiting:
                self._unread.make_room()
            self._observer.fills_changed(len(self._running))
            task = job.task = asyncio.create_task(self._run(fill, job, size, open_blob, verified))
            self._tasks[task] = fill
            task.add_done_callback(lambda done: self._ended(done, fill, job))
        return fill

    def progress(self) -> list[FillProgress]:
        """Of all running fills."""
        return [FillProgress(fill.digest, fill.size, fill.written, fill.readers) for fill in self._running.values()]

    def _read(self, fill: Fill) -> None:
        """The first reader came, or the last one left."""
        job = self._jobs.get(fill)
        if job is None or fill.verified:
            return
        if fill.readers:
            self._unread.forget(fill)
        elif job.ticket.is_waiting:  # nothing has arrived that would be lost
            self._give_up(fill)
        else:
            self._unread.left(fill)
            if self._slots.are_short:
                self._unread.make_room()

    def _give_up(self, fill: Fill) -> None:
        """End a fill that nobody reads."""
        if not fill.verified and self._running.get(fill.digest) is fill:
            del self._running[fill.digest]  # who asks from now on gets a new one
            self._end(fill, FillCancelled("nobody waits for the blob any more"))

    def _end(self, fill: Fill, error: RegistryError) -> None:
        fill.error = error
        self._unread.forget(fill)
        self._jobs[fill].end()

    def cancel_unread(self) -> None:
        """Give up what no client is waiting for: the stop has begun."""
        now = time.monotonic()
        for fill in list(self._running.values()):
            if not fill.readers and now - fill.left_at >= _JOIN_SECONDS:
                self._give_up(fill)

    async def close(self) -> None:
        """End what is still arriving, and its staged files; what is verified is committed."""
        for fill in self._tasks.values():
            if not fill.verified:
                self._end(fill, Unavailable("the cache is shutting down"))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._hashing.shutdown()

    async def _run(
        self,
        fill: Fill,
        job: _Job,
        size: int | None,
        open_blob: OpenBlob,
        verified: Callable[[], Awaitable[None]] | None,
    ) -> RegistryError | StorageError | None:
        """Have the blob in the store; returns why it is not."""
        try:
            await asyncio.shield(job.ticket.granted)  # a slot may still be given to what has just been cancelled
            if size is not None:  # no connection for what will not be stored
                fill.staged = await job.undisturbed(self._store.stage(fill.digest, size))
            await self._fetch(fill, job, size, open_blob)
            if verified is not None:
                await verified()
            assert fill.staged is not None
            await self._store.commit(fill.staged)
        except (RegistryError, StorageError) as error:
            return error
        return None

    def _ended(self, task: _Task, fill: Fill, job: _Job) -> None:
        """Not a part of `_run`, which does not run at all where it is cancelled before it began."""
        del self._tasks[task]
        del self._jobs[fill]
        defect = None if task.cancelled() else task.exception()
        if defect is not None:
            logger.error("hubcache: fetching %s failed", fill.digest, exc_info=defect)
        if task.cancelled() or defect is not None:  # its readers would wait for ever
            fill.error = fill.error or Unavailable("internal error")
        else:
            failure = task.result()
            fill.error = fill.error or (failure and failure.without_traceback())
            fill.stored = fill.error is None
        if isinstance(fill.error, StorageError):
            self._failed(fill.error)
        if self._running.get(fill.digest) is fill:
            del self._running[fill.digest]
        self._slots.give_back(job.ticket)
        self._unread.forget(fill)
        try:
            if fill.staged is not None:
                self._store.finish(fill.staged)
        except StorageError as error:
            self._failed(error)
        fill.notify()
        self._observer.fills_changed(len(self._running))
        self._observer.fill_ended(fill.digest, fill.error)

    async def _fetch(self, fill: Fill, job: _Job, size: int | None, open_blob: OpenBlob) -> None:
        """Until the whole blob is on the staged file and verified; a broken transfer is resumed where it broke."""
        verifier = Verifier(fill.digest, size)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        failures = mark = 0
        while True:
            await fill.may_go_on()
            try:
                async with open_blob(verifier.received) as body:
                    await self._accept_size(fill, job, verifier, body)
                    await self._absorb(fill, job, verifier, body)
                if verifier.size is not None and verifier.received < verifier.size:
                    raise Unavailable("upstream ended the transfer early")
                break
            except Unavailable as error:
                if isinstance(error, CircuitOpen) and await error.wait_for_probe():
                    continue  # nothing was tried
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

    async def _accept_size(self, fill: Fill, job: _Job, verifier: Verifier, body: BlobBody) -> None:
        """Agree on the size with what the upstream promises now, and on the first time reserve the room."""
        if verifier.size is None:
            verifier.size = body.size
        elif body.size is not None and body.size != verifier.size:
            raise BadUpstream(
                "upstream promises another size than the manifest says",
                {"digest": str(fill.digest), "expected": verifier.size, "got": body.size},
            )
        if fill.staged is None:
            fill.staged = await job.undisturbed(self._store.stage(fill.digest, verifier.size or 0))
            fill.raise_error()  # it may have been given up meanwhile, and the first bytes be long in coming
        if fill.size is None and verifier.size is not None and fill.staged.reserved >= verifier.size:
            fill.size = verifier.size
            fill.notify()

    async def _absorb(self, fill: Fill, job: _Job, verifier: Verifier, body: BlobBody) -> None:
        staged = fill.staged
        assert staged is not None
        skip = verifier.received - body.start  # the upstream may have ignored our Range and begun at 0
        loop = asyncio.get_running_loop()

        def take(data: bytes) -> None:
            verifier.update(data)
            staged.write(data)

        async for chunk in body.chunks():
            data = chunk[skip:] if skip else chunk
            skip = max(0, skip - len(chunk))
            if fill.size is None:
                await job.undisturbed(self._store.extend(staged, verifier.received + len(data)))
            if len(data) <= _INLINE_BYTES:
                take(data)
            else:
                await job.undisturbed(loop.run_in_executor(self._hashing, take, data))
            fill.advance(staged.written)
            await fill.may_go_on()
