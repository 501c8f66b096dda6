"""Sources of an answer's bytes: a stored file, the growing file of a fill, or the upstream itself."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Never, Protocol

from ..oci.digest import Verifier
from ..oci.errors import BadUpstream, StorageError
from ..store.stored_blob import StoredBlob
from .blob_body import BlobBody
from .file_part import FilePart, send_file
from .fill import Fill

CHUNK = 512 << 10
"""Bytes that are read at once by default. A chunk that is passed to mitmproxy goes through the processor's caches three
times; measured with one client over TLS, in MB/s: 64 KiB 445, 256 KiB 840, 512 KiB 985, 1 MiB 560."""

_READ_AHEAD_CHUNKS = 7
"""Chunks after the next one that the kernel is asked to read ahead: a read from a slow disk blocks the event loop."""

_GATHER_SECONDS = 0.05
"""Longest wait for a whole chunk of a growing file, so that a slow download with many readers does not wake all of them
for each packet. The first chunk is never delayed."""

type OpenRange = Callable[[int, int | None], AbstractAsyncContextManager[BlobBody]]
"""Opens an upstream blob from one byte to before another (None: to its end)."""


class Source(Protocol):
    """The bytes of one answer, in order, once. `origin` is the metric label of where they come from."""

    origin: str

    async def read(self, most: int = CHUNK) -> bytes:
        """Return the next bytes, at most about `most`; raises a `HubcacheError` when they cannot be read."""

    async def file_part(self) -> FilePart | None:
        """Wait for bytes, and return them if they are in a file, else None.

        The sender reads them into its own buffer, which stays in the processor's cache, or has the kernel send them.
        Raises as `read` does.
        """
        return None

    @property
    def finished(self) -> bool:
        """Whether all bytes have been read."""

    async def close(self) -> None:
        """Release resources; always called, whether all bytes were read or not."""


class BytesSource(Source):
    """Bytes in memory that must not stay in a recorded flow (a token service's answer)."""

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
    """Bytes `start` to before `end` of a stored blob, which it owns."""

    origin = "store"

    def __init__(self, blob: StoredBlob, start: int, end: int) -> None:
        self._blob = blob
        self.path = blob.path
        self.on_close: Callable[[], None] = lambda: None
        """Called when all bytes were sent, or the client disconnected."""
        self.at = start
        self.end = end

    async def read(self, most: int = CHUNK) -> bytes:
        with self._reading():
            data = os.pread(self._blob.fd, min(most, self.end - self.at), self.at)
        self._advance(len(data), most)
        return data

    async def file_part(self) -> FilePart:
        return self

    def read_into(self, buffer: memoryview) -> int:
        with self._reading():
            count = os.preadv(self._blob.fd, [buffer[: self.end - self.at]], self.at)
        self._advance(count, len(buffer))
        return count

    def send_to(self, socket: int, most: int) -> int:
        count = send_file(socket, self._blob.fd, self.at, min(most, self.end - self.at), self._raise_unreadable)
        self._advance(count, most)
        return count

    def _advance(self, count: int, most: int) -> None:
        if not count and not self.finished:
            self.unreadable()
            raise StorageError("a stored blob is shorter than when it was stored")
        self.at += count
        if not self.finished:
            os.posix_fadvise(self._blob.fd, self.at + most * _READ_AHEAD_CHUNKS, most, os.POSIX_FADV_WILLNEED)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Translate read errors into `StorageError`, and have the file verified before it is served again."""
        try:
            yield
        except OSError as error:
            self._raise_unreadable(error)

    def _raise_unreadable(self, error: OSError) -> Never:
        self.unreadable()
        raise StorageError(f"cannot read a stored blob: {error}") from error

    def unreadable(self) -> None:
        """Record that reading the file failed, here or in the worker process that sends it."""
        self._blob.unreadable()

    @property
    def finished(self) -> bool:
        return self.at >= self.end

    async def close(self) -> None:
        self._blob.close()
        self.on_close()


class UpstreamSource(Source):
    """Bytes `start` to before `end` of an upstream blob, which are not stored.

    With a `verifier`, for a whole blob, the last bytes are returned only after the digest matches, and `verified` is
    called. The client verifies ranges itself.
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
        self.answered_at: float | None = None
        """When the registry sent the blob, see `BlobBody`; known after `open`."""
        self._stack = AsyncExitStack()
        self._chunks: AsyncIterator[bytes] | None = None
        self._skip = 0
        self.on_close: Callable[[], None] = lambda: None
        """As `FileSource.on_close`."""

    async def open(self) -> None:
        """Send the request now, so that a refusal becomes an error response and not a body cut short."""
        body = await self._stack.enter_async_context(self._open_body(self._at, self._end))
        self.answered_at = body.answered_at
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
        raise BadUpstream("upstream sent fewer bytes than expected")

    async def _verify(self) -> None:
        """Verify the digest; all bytes have arrived."""
        if self._verifier is not None:
            self._verifier.finish()
            if self._verified is not None:
                await self._verified()

    @property
    def finished(self) -> bool:
        return self._at >= self._end

    async def close(self) -> None:
        self.on_close()
        await self._stack.aclose()


class FillSource(Source):
    """Bytes of a blob that is being filled, as they arrive. When the store fails, `fallback` supplies the rest."""

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
        """`fd`, which it owns, is a descriptor of the growing file at `path`; `released` is called on close."""
        self.fill = fill
        self.path = path
        self.at = start
        self.end = end
        self._fd = fd
        self._fallback = fallback
        self._released = released
        self._replacement: Source | None = None
        self._has_begun = False
        self.on_close: Callable[[], None] = lambda: None
        """As `FileSource.on_close`."""
        self._reading = ExitStack()
        self._reading.enter_context(fill.reading())
        fill.file_readers.add(self)

    async def read(self, most: int = CHUNK) -> bytes:
        while not self.finished:
            part = await self.file_part()
            if part is None:
                assert self._replacement is not None
                return await self._replacement.read(most)
            data = bytearray(min(most, self.end - self.at))
            count = part.read_into(memoryview(data))
            if count:
                return bytes(data[:count])
        return b""

    async def file_part(self) -> FilePart | None:
        if self._replacement is None:
            try:
                await self._follow()
            except StorageError:
                self._use_fallback()
        return self if self._replacement is None else None

    async def _follow(self) -> None:
        """Wait for the next bytes, and briefly for a whole chunk."""
        await self.fill.wait_readable(self.at + 1)
        if self._has_begun and self.fill.error is None:
            await self.fill.wait_readable(min(self.at + CHUNK - self.at % CHUNK, self.end), _GATHER_SECONDS)
        self._has_begun = True

    def read_into(self, buffer: memoryview) -> int:
        wanted = min(self.fill.readable, self.end) - self.at
        if wanted <= 0:
            return 0
        try:
            count = os.preadv(self._fd, [buffer[:wanted]], self.at)
        except OSError:
            count = 0
        return self._advance(count)

    def send_to(self, socket: int, most: int) -> int:
        wanted = min(self.fill.readable, self.end, self.at + most) - self.at
        return 0 if wanted <= 0 else self._advance(send_file(socket, self._fd, self.at, wanted, lambda _: None))

    def _advance(self, count: int) -> int:
        """Advance by `count` bytes. If it is 0, the file lacks bytes that the fill has written: use the fallback."""
        if not count:
            self._use_fallback()
        self.at += count
        return count

    def _use_fallback(self) -> None:
        """Read the rest from the fallback, after the store failed."""
        self._replacement = self._fallback(self.at, self.end)

    @property
    def finished(self) -> bool:
        return self.at >= self.end if self._replacement is None else self._replacement.finished

    async def close(self) -> None:
        os.close(self._fd)
        self.fill.file_readers.discard(self)
        self._reading.close()
        self._released()
        self.on_close()
        if self._replacement is not None:
            await self._replacement.close()
