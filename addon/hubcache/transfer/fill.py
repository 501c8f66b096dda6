"""One fill, as its readers see it.

Readers get the bytes of a blob as soon as they are in the staged file, except the last byte: it is held back until the
digest is verified, so that no client receives a wrong body as a complete one.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ..oci.digest import Digest
from ..oci.errors import HubcacheError
from ..store.staging import Staged

MAX_PARALLEL_RANGES = 4
"""Ranges that are fetched in parallel to one fill. The bound keeps a client that requests many chunks from causing as
many requests upstream."""

_MAX_CHUNK = 32 << 20
"""Ranges up to this many bytes may be the chunks of a client that fetches a whole blob in parallel, as containerd
does."""

_MANY_READERS = 100
"""With this many readers or more, the readers of a fill are not examined one by one."""


class FileReader(Protocol):
    """Reads bytes `at` to before `end` of a fill's file."""

    at: int
    end: int


class Fill:
    """A download of one blob. `size` is known after `wait_opened`; `error` is set when the fill has failed."""

    def __init__(
        self,
        digest: Digest,
        origin: str = "",
        readers_changed: Callable[["Fill"], None] = lambda _: None,
        repository: str = "",
    ) -> None:
        """`readers_changed` is called when the first reader starts and when the last one ends."""
        self.digest = digest
        self.origin = origin
        """Host of the registry that the blob is downloaded from: permissions of other registries do not apply to the
        fill."""
        self.repository = repository
        """The repository through which the blob is downloaded."""
        self.started = time.time()
        """When the fill was requested, in seconds since the epoch."""
        self.size: int | None = None
        self.answered_at: float | None = None
        """When the registry sent the blob, see `BlobBody`; known after `wait_opened`."""
        self.error: HubcacheError | None = None
        self.staged: Staged | None = None
        self.verified = False
        self.stored = False
        self.range_slots = asyncio.Semaphore(MAX_PARALLEL_RANGES)
        """Slots for ranges that are fetched in parallel to this fill."""
        self.file_readers: set[FileReader] = set()
        self.readers = 0
        """Number of tasks that read the fill's file, or wait for the fill to open or to be stored."""
        self.unread_since = 0.0
        """When `readers` last fell to 0 (monotonic clock). It is 0 for a moment between a client's `wait_opened` and
        its first read."""
        self._readers_changed = readers_changed
        self._running = asyncio.Event()
        """Set unless the fill is paused."""
        self._running.set()
        self._written = 0
        self._changed = asyncio.Event()
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        """Number of bytes that must be readable, and the future to wake."""

    @property
    def written(self) -> int:
        """Number of bytes that have arrived."""
        return self._written

    @property
    def readable(self) -> int:
        """Number of bytes that readers may read."""
        if self.verified or self.size is None:
            return self._written
        return min(self._written, max(0, self.size - 1))

    async def wait_opened(self) -> int:
        """Wait until the blob's size is known, and return it; raises the fill's error.

        A blob of one byte or none has no bytes before the last one: this waits until it is verified.
        """
        with self.reading():
            while self.size is None or (self.size <= 1 and not self.verified):
                self.raise_error()
                await self._changed.wait()
            return self.size

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count one more reader while the context is open."""
        self.readers += 1
        if self.readers == 1:
            self._readers_changed(self)
        try:
            yield
        finally:
            self.readers -= 1
            if self.readers == 0:
                self.unread_since = time.monotonic()
                self._readers_changed(self)

    def pause(self) -> None:
        """Stop downloading, and keep the bytes that have arrived."""
        self._running.clear()

    def resume(self) -> None:
        """Continue downloading."""
        self._running.set()

    @property
    def is_paused(self) -> bool:
        """Whether downloading has stopped for now."""
        return not self._running.is_set()

    async def wait_while_paused(self) -> None:
        """Wait until the fill is not paused; raises its error when it was cancelled."""
        if not self._running.is_set():
            await self._running.wait()
        self.raise_error()

    def is_requested_until(self, at: int) -> bool:
        """Whether clients' chunks cover everything from the readable bytes to byte `at`: such chunks share the fill."""
        if len(self.file_readers) > _MANY_READERS:
            return True
        edge = self.readable
        chunks = [(reader.at, reader.end) for reader in self.file_readers if reader.end - reader.at <= _MAX_CHUNK]
        for start, end in sorted(chunks):
            if start > edge:
                break
            edge = max(edge, end)
        return edge >= at

    async def wait_readable(self, count: int, patience: float | None = None) -> None:
        """Wait until `count` bytes are readable, at most `patience` seconds; raises the fill's error."""
        deadline = None if patience is None else asyncio.get_running_loop().time() + patience
        while self.readable < count and (deadline is None or asyncio.get_running_loop().time() < deadline):
            self.raise_error()
            await self._wait(count, deadline)

    async def _wait(self, count: int, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        entry = (count, woken)
        self._waiting.add(entry)
        timer = None if deadline is None else loop.call_at(deadline, _wake, woken)
        try:
            await woken
        finally:
            self._waiting.discard(entry)
            if timer is not None:
                timer.cancel()

    async def wait_received(self, abandoned: asyncio.Event) -> None:
        """Wait until all bytes have arrived and are verified, the fill has failed, or `abandoned` is set. The caller is
        no reader."""

        async def wait() -> None:
            while not self.verified and self.error is None:
                await self._changed.wait()

        waiting = asyncio.create_task(wait()), asyncio.create_task(abandoned.wait())
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def wait_stored(self) -> None:
        """Wait until the blob is in the store; raises the fill's error."""
        with self.reading():
            while not self.stored:
                self.raise_error()
                await self._changed.wait()

    def raise_error(self) -> None:
        """Raise the error that ended the fill, if it failed."""
        if self.error is not None:
            raise self.error.without_traceback()

    def advance(self, written: int) -> None:
        """Set the number of bytes in the file, and wake the readers that wait for them and no others: there may be
        many."""
        self._written = written
        for count, woken in self._waiting:
            if count <= self.readable:
                _wake(woken)

    def notify(self) -> None:
        """Wake all tasks that wait, after another attribute has changed."""
        self._changed.set()
        self._changed = asyncio.Event()
        for _, woken in self._waiting:
            _wake(woken)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
