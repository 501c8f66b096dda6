"""Fills: one fetch per digest, however many ask. Stage, hash, verify, then commit or cancel.

A fill runs on when its clients leave, within bounds: see `unread`. How many run at the same time, and whose: `slots`.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ..oci.digest import Digest, Verifier
from ..oci.errors import Abandoned, BadUpstream, RegistryError, StorageError, Unavailable
from ..store.store import Store
from .breaker import CircuitOpen
from .fill import Fill
from .observer import Observer
from .slots import Slots, Ticket
from .unread import Unread
from .upstream import BlobBody

type OpenBlob = Callable[[int], AbstractAsyncContextManager[BlobBody]]
"""Opens the blob upstream from the given byte."""

_ATTEMPTS_TO_OPEN = 3
_OPEN_SECONDS = 45.0
"""No further attempt to open after so long: each may cost a time-out, and clients wait for a minute to five."""
_ATTEMPTS_WITHOUT_PROGRESS = 5
_PROGRESS_BYTES = 1 << 20
"""An attempt that brought this much more is no failure. Any byte would not do: a gigabyte from an upstream that breaks
off after each packet would become a million requests."""
_BACKOFF_SECONDS = 0.2
_INLINE_BYTES = 64 << 10
"""Batches up to this are hashed on the loop; a hop to the worker thread costs more than hashing them."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fill is, in bytes; `size` is None before it is known."""

    digest: Digest
    size: int | None
    written: int
    readers: int


class Fills:
    """All fills of this process; `failed` is told why content could not be stored."""

    def __init__(self, store: Store, observer: Observer, failed: Callable[[StorageError], None]) -> None:
        self._store = store
        self._observer = observer
        self._failed = failed
        self._running: dict[Digest, Fill] = {}
        self._tickets: dict[Fill, Ticket] = {}
        self._tasks: dict[asyncio.Task[None], Fill] = {}
        self._slots = Slots()
        self._unread = Unread(store.is_wanted, self._give_up)
        self._hashing = ThreadPoolExecutor(2, thread_name_prefix="fill")

    def get(self, digest: Digest, asker: str | None = None) -> Fill | None:
        """The running fill of a digest, which from now on is `asker`'s, too."""
        fill = self._running.get(digest)
        if fill is not None and asker is not None:
            self._slots.join(self._tickets[fill], asker)
        return fill

    def start(self, digest: Digest, size: int | None, open_blob: OpenBlob, asker: str = "") -> Fill:
        """The running fill of a digest, or a new one. `size` is what a manifest says it must be; `asker` the address
        of the client that it is for, or `PREFETCH`."""
        fill = self.get(digest, asker)
        if fill is None:
            fill = self._running[digest] = Fill(digest, self._read)
            ticket = self._tickets[fill] = self._slots.ask(asker)
            if ticket.is_waiting:
                self._unread.make_room()
            self._observer.fills_changed(len(self._running))
            task = asyncio.create_task(self._run(fill, ticket, size, open_blob))
            self._tasks[task] = fill
            task.add_done_callback(lambda done: self._tasks.pop(done))
        return fill

    def progress(self) -> list[Progress]:
        """Of all running fills."""
        return [Progress(fill.digest, fill.size, fill.written, fill.readers) for fill in self._running.values()]

    def _read(self, fill: Fill) -> None:
        """The first reader came, or the last one left."""
        ticket = self._tickets.get(fill)
        if ticket is None or fill.verified:
            return
        if fill.readers:
            self._unread.forget(fill)
        elif ticket.is_waiting:  # nothing has arrived that would be lost
            self._give_up(fill)
        else:
            self._unread.left(fill)

    def _give_up(self, fill: Fill) -> None:
        """End a fill that nobody reads. It is not cancelled: a thread may be writing to its file."""
        if fill.verified or self._running.get(fill.digest) is not fill:
            return
        fill.error = Abandoned("nobody waits for the blob any more")
        del self._running[fill.digest]
        ticket = self._tickets[fill]
        if ticket.is_waiting:
            self._slots.give_back(ticket)
        self._unread.forget(fill)

    async def close(self) -> None:
        """Cancel what is still arriving, and its staged files; what is verified is committed."""
        for task, fill in self._tasks.items():
            if not fill.verified:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._hashing.shutdown()

    async def _run(self, fill: Fill, ticket: Ticket, size: int | None, open_blob: OpenBlob) -> None:
        try:
            await ticket.granted
            if size is not None:  # no connection for what will not be stored
                fill.staged = await self._store.stage(fill.digest, size)
            await self._fetch(fill, size, open_blob)
            assert fill.staged is not None
            await self._store.commit(fill.staged)
            fill.stored = True
        except (RegistryError, StorageError) as error:
            fill.error = error
            if isinstance(error, StorageError):
                self._failed(error)
        except asyncio.CancelledError:
            fill.error = fill.error or Unavailable("the cache is shutting down")
            raise
        finally:
            if not fill.stored and fill.error is None:  # a defect of this program: its readers would wait for ever
                fill.error = Unavailable("internal error")
            if self._running.get(fill.digest) is fill:
                del self._running[fill.digest]
            del self._tickets[fill]
            self._slots.give_back(ticket)
            self._unread.forget(fill)
            try:
                if fill.staged is not None:
                    self._store.finish(fill.staged)
            except StorageError as error:
                self._failed(error)
            fill.notify()
            self._observer.fills_changed(len(self._running))
            self._observer.fill_ended(fill.digest, fill.error)

    async def _fetch(self, fill: Fill, size: int | None, open_blob: OpenBlob) -> None:
        """Until the whole blob is on the staged file and verified; a broken transfer is resumed where it broke."""
        verifier = Verifier(fill.digest, size)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        failures = mark = 0
        while True:
            await fill.may_go_on()
            try:
                async with open_blob(verifier.received) as body:
                    await self._accept_size(fill, verifier, body)
                    await self._absorb(fill, verifier, body)
                if verifier.size is not None and verifier.received < verifier.size:
                    raise Unavailable("upstream ended the transfer early")
                break
            except Unavailable as error:
                if isinstance(error, CircuitOpen) and await error.is_over():
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

    async def _accept_size(self, fill: Fill, verifier: Verifier, body: BlobBody) -> None:
        """Agree on the size with what the upstream promises now, and on the first time reserve the room."""
        if verifier.size is None:
            verifier.size = body.size
        elif body.size is not None and body.size != verifier.size:
            raise BadUpstream(
                "upstream promises another size than the manifest says",
                {"digest": str(fill.digest), "expected": verifier.size, "got": body.size},
            )
        if fill.staged is None:
            fill.staged = await self._store.stage(fill.digest, verifier.size or 0)
        if fill.size is None and verifier.size is not None and fill.staged.reserved >= verifier.size:
            fill.size = verifier.size
            fill.notify()

    async def _absorb(self, fill: Fill, verifier: Verifier, body: BlobBody) -> None:
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
                await self._store.extend(staged, verifier.received + len(data))
            if len(data) <= _INLINE_BYTES:
                take(data)
            else:
                await loop.run_in_executor(self._hashing, take, data)
            fill.advance(staged.written)
            await fill.may_go_on()
