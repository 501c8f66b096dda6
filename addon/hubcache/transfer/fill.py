"""One blob on its way in, as its readers see it.

They see its bytes as soon as they are on the staged file, except the last one: that is held back until the digest is
verified, so that no client ever receives a wrong body as a complete one.
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
"""Ranges fetched beside one fill at the same time. Keeps a client that asks for many chunks from becoming many upstream
requests."""

_CHUNK_BYTES = 32 << 20
"""Ranges up to this length may be the chunks of a client that fetches a whole blob in parallel, as containerd does."""

_MANY = 100
"""Readers of one fill that are not looked at one by one."""


class Follower(Protocol):
    """Reads bytes `at` to before `end` of a fill's file."""

    at: int
    end: int


class Fill:
    """One blob on its way in. `size` is known once `opened` returns; `error` is set when the fill failed."""

    def __init__(self, digest: Digest, origin: str = "", read: Callable[["Fill"], None] = lambda _: None) -> None:
        """`read` is told when the first reader comes and when the last one leaves."""
        self.digest = digest
        self.origin = origin
        """Registry that it comes from: which has no say in who may read what another gives."""
        self.size: int | None = None
        self.error: HubcacheError | None = None
        self.staged: Staged | None = None
        self.verified = False
        self.stored = False
        self.places = asyncio.Semaphore(MAX_PARALLEL_RANGES)
        """For ranges that are fetched beside it."""
        self.followers: set[Follower] = set()
        """Who reads its file."""
        self.readers = 0
        """Who reads its file, or waits for it to be opened or to end."""
        self._read = read
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._written = 0
        self._changed = asyncio.Event()
        self.left_at = 0.0
        """When the last reader left (monotonic clock); who waited for it to open reads it a moment later."""
        self._readers: set[tuple[int, asyncio.Future[None]]] = set()

    @property
    def written(self) -> int:
        """Bytes that have arrived."""
        return self._written

    @property
    def readable(self) -> int:
        """Bytes that readers may have."""
        if self.verified or self.size is None:
            return self._written
        return min(self._written, max(0, self.size - 1))

    async def wait_opened(self) -> int:
        """Wait until the upstream promised a size; returns it, or raises what prevented it."""
        with self.reading():
            while self.size is None:
                self.raise_error()
                await self._changed.wait()
            return self.size

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count as a reader meanwhile."""
        self.readers += 1
        if self.readers == 1:
            self._read(self)
        try:
            yield
        finally:
            self.readers -= 1
            if self.readers == 0:
                self.left_at = time.monotonic()
                self._read(self)

    def pause(self) -> None:
        """Have it stand still, with what has arrived."""
        self._goes_on.clear()

    def resume(self) -> None:
        """Have it go on."""
        self._goes_on.set()

    async def may_go_on(self) -> None:
        """Wait while it is to stand still; raises its error where it was given up."""
        if not self._goes_on.is_set():
            await self._goes_on.wait()
        self.raise_error()

    def is_asked_for_until(self, at: int) -> bool:
        """Whether all from what is readable up to byte `at` is asked for in chunks: then they share the fill."""
        if len(self.followers) > _MANY:
            return True
        edge = self.readable
        chunks = [(one.at, one.end) for one in self.followers if one.end - one.at <= _CHUNK_BYTES]
        for start, end in sorted(chunks):
            if start > edge:
                break
            edge = max(edge, end)
        return edge >= at

    async def wait_readable(self, count: int, patience: float | None = None) -> None:
        """Wait until `count` bytes are readable, but not longer than `patience` (seconds); raises the fill's error
        when they never will be."""
        deadline = None if patience is None else asyncio.get_running_loop().time() + patience
        while self.readable < count and (deadline is None or asyncio.get_running_loop().time() < deadline):
            self.raise_error()
            await self._until(count, deadline)

    async def _until(self, count: int, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        reader = (count, woken)
        self._readers.add(reader)
        timer = None if deadline is None else loop.call_at(deadline, _wake, woken)
        try:
            await woken
        finally:
            self._readers.discard(reader)
            if timer is not None:
                timer.cancel()

    async def wait_stored(self) -> None:
        """Wait until the blob is in the store; raises the fill's error."""
        with self.reading():
            while not self.stored:
                self.raise_error()
                await self._changed.wait()

    def raise_error(self) -> None:
        """Raise what ended the fill, if it failed."""
        if self.error is not None:
            raise self.error.without_traceback()

    def advance(self, written: int) -> None:
        """More bytes are on the file; wakes only those who wait for them, for there may be many readers."""
        self._written = written
        for count, woken in self._readers:
            if count <= self.readable:
                _wake(woken)

    def notify(self) -> None:
        """Wake all who wait; each looks for itself."""
        self._changed.set()
        self._changed = asyncio.Event()
        for _, woken in self._readers:
            _wake(woken)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
