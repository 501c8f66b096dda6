"""Where the bytes of an answer come from: a stored file, the growing file of a fill, or the upstream itself."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ..oci.digest import Verifier
from ..oci.errors import BadUpstream, StorageError
from ..store.stored_blob import StoredBlob
from .fill import Fill
from .upstream import BlobBody

CHUNK = 512 << 10
"""Bytes read at once where nothing says how many. What mitmproxy is handed goes through the processor's caches three
times; measured with one client over TLS, MB/s: 64 KiB 445, 256 KiB 840, 512 KiB 985, 1 MiB 560."""

_AHEAD = 7
"""How many chunks after the next the kernel is asked to have ready: a read from a slow disk would stop everybody."""

_GATHER_SECONDS = 0.05
"""On a growing file: wait this long for a whole chunk, so that many slow-fed clients do not cost a wake-up of the whole
proxy for each packet. The first chunk is never delayed."""

type ReadInto = Callable[[memoryview], int]
"""Reads the next bytes into a buffer; returns how many, none where more is to be waited for. Raises as `read` does."""

type OpenRange = Callable[[int, int | None], AbstractAsyncContextManager[BlobBody]]
"""Opens a blob upstream from one byte up to before another (None: to its end)."""


class Source(Protocol):
    """Bytes of one answer, in order, once. `origin` is the metric label of where they come from."""

    origin: str

    async def read(self, most: int = CHUNK) -> bytes:
        """The next bytes, at most about `most`. Raises a `HubcacheError` when they cannot be had."""

    async def file_reader(self) -> ReadInto | None:
        """Wait for bytes; gives what reads them, where they are on a file: who sends them has a buffer that stays in
        the processor's cache. Raises as `read` does."""
        return None

    @property
    def finished(self) -> bool:
        """Whether all bytes were read."""

    async def close(self) -> None:
        """Always called, whether read to the end or not."""


class BytesSource(Source):
    """Bytes at hand that must not stay in a recorded flow (a token service's answer)."""

    origin = "upstream"

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, most: int = CHUNK) -> bytes:
        data, self._data = self._data, b""
        return data

    @property
    def finished(self) -> bool:
        return not self._data

    async def close(self) -> None:
        self._data = b""


class FileSource(Source):
    """Bytes `start` to before `end` of a stored blob; owns it."""

    origin = "store"

    def __init__(self, blob: StoredBlob, start: int, end: int) -> None:
        self._blob = blob
        self.path = blob.path
        self.on_close: Callable[[], None] = lambda: None
        """Called when all was sent, or the client left."""
        self.at = start
        self.end = end

    async def read(self, most: int = CHUNK) -> bytes:
        with self._reading():
            data = os.pread(self._blob.fd, min(most, self.end - self.at), self.at)
        self._advance(len(data), most)
        return data

    async def file_reader(self) -> ReadInto:
        return self._take

    def _take(self, buffer: memoryview) -> int:
        with self._reading():
            count = os.preadv(self._blob.fd, [buffer[: self.end - self.at]], self.at)
        self._advance(count, len(buffer))
        return count

    def _advance(self, count: int, most: int) -> None:
        if not count and not self.finished:
            self.unreadable()
            raise StorageError("a stored blob is shorter than when it was stored")
        self.at += count
        if not self.finished:
            os.posix_fadvise(self._blob.fd, self.at + most * _AHEAD, most, os.POSIX_FADV_WILLNEED)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A file that cannot be read breaks the body off, and is looked at before it is served again."""
        try:
            yield
        except OSError as error:
            self.unreadable()
            raise StorageError(f"cannot read a stored blob: {error}") from error

    def unreadable(self) -> None:
        """Reading the file failed, here or in the worker that has it."""
        self._blob.unreadable()

    @property
    def finished(self) -> bool:
        return self.at >= self.end

    async def close(self) -> None:
        self._blob.close()
        self.on_close()


class UpstreamSource(Source):
    """Bytes `start` to before `end`, straight from the upstream and not stored.

    With a `verifier` of all of them, the last ones are given only when all are right, and `verified` is told; of a
    part, the client decides.
    """

    origin = "upstream"

    def __init__(
        self,
        open_body: OpenRange,
        start: int,
        end: int,
        verifier: Verifier | None = None,
        verified: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._open_body = open_body
        self._verifier = verifier
        self._verified = verified
        self._at = start
        self._end = end
        self._stack = AsyncExitStack()
        self._chunks: AsyncIterator[bytes] | None = None
        self._skip = 0

    async def open(self) -> None:
        """Ask the upstream now, so that a refusal becomes an error answer and not a broken body."""
        body = await self._stack.enter_async_context(self._open_body(self._at, self._end))
        if self.finished:
            await self._verify()
        self._skip = self._at - body.start
        self._chunks = body.chunks()

    async def read(self, most: int = CHUNK) -> bytes:
        if self.finished:
            return b""
        if self._chunks is None:
            await self.open()
        assert self._chunks is not None
        async for chunk in self._chunks:
            data = chunk[self._skip :][: self._end - self._at]
            self._skip = max(0, self._skip - len(chunk))
            if data:
                self._at += len(data)
                if self._verifier is not None:
                    self._verifier.update(data)
                if self.finished:
                    await self._verify()
                return data
        raise BadUpstream("upstream sent fewer bytes than it promised")

    async def _verify(self) -> None:
        """All bytes are here."""
        if self._verifier is not None:
            self._verifier.finish()
            if self._verified is not None:
                await self._verified()

    @property
    def finished(self) -> bool:
        return self._at >= self._end

    async def close(self) -> None:
        await self._stack.aclose()


class FillSource(Source):
    """Bytes of a blob that is being filled, as they arrive. When the store fails, the rest comes from `fallback`."""

    origin = "fill"

    def __init__(
        self,
        fill: Fill,
        path: Path,
        fd: int,
        start: int,
        end: int,
        fallback: Callable[[int, int], Source],
        released: Callable[[], None] = lambda: None,
    ) -> None:
        """`fd`, which this owns, is of the growing file at `path`; `released` is told when this is closed."""
        self.fill = fill
        self.path = path
        self.at = start
        self.end = end
        self._fd = fd
        self._fallback = fallback
        self._released = released
        self._instead: Source | None = None
        self._begun = False
        self._reading = ExitStack()
        self._reading.enter_context(fill.reading())
        fill.followers.add(self)

    async def read(self, most: int = CHUNK) -> bytes:
        while not self.finished:
            take = await self.file_reader()
            if take is None:
                assert self._instead is not None
                return await self._instead.read(most)
            data = bytearray(min(most, self.end - self.at))
            count = take(memoryview(data))
            if count:
                return bytes(data[:count])
        return b""

    async def file_reader(self) -> ReadInto | None:
        if self._instead is None:
            try:
                await self._follow()
            except StorageError:
                self._turn_away()
        return self._take if self._instead is None else None

    async def _follow(self) -> None:
        await self.fill.wait_readable(self.at + 1)
        if self._begun and self.fill.error is None:
            await self.fill.wait_readable(min(self.at + CHUNK - self.at % CHUNK, self.end), _GATHER_SECONDS)
        self._begun = True

    def _take(self, buffer: memoryview) -> int:
        wanted = min(self.fill.readable, self.end) - self.at
        if wanted <= 0:
            return 0
        try:
            count = os.preadv(self._fd, [buffer[:wanted]], self.at)
        except OSError:
            count = 0
        if not count:
            self._turn_away()
        self.at += count
        return count

    def _turn_away(self) -> None:
        """From the store, which failed."""
        self._instead = self._fallback(self.at, self.end)

    @property
    def finished(self) -> bool:
        return self.at >= self.end if self._instead is None else self._instead.finished

    async def close(self) -> None:
        os.close(self._fd)
        self.fill.followers.discard(self)
        self._reading.close()
        self._released()
        if self._instead is not None:
            await self._instead.close()
