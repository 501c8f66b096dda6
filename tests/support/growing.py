"""A fill whose bytes arrive when a test allows it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hubcache.oci.digest import Digest
from hubcache.transfer.blob_body import BlobDownload
from hubcache.transfer.fill import Fill
from hubcache.transfer.fills import Fills

_PIECE = 100_000


class GrowingBlob:
    """A blob that is being filled with `sent`, which is usually `data`; `allow` says how many bytes have arrived."""

    def __init__(self, fills: Fills, data: bytes, *, sent: bytes | None = None, opens: bool = True) -> None:
        self.data = data
        self._sent = data if sent is None else sent
        self._opens = opens
        self._allowed = 0
        self._changed = asyncio.Event()
        self.fill: Fill = fills.start(Digest.of(data), None, self._open)

    def allow(self, count: int) -> None:
        """Let the first `count` bytes arrive."""
        self._allowed = count
        self._changed.set()
        self._changed = asyncio.Event()

    async def store(self) -> None:
        """Let all bytes arrive, and wait until the blob is stored."""
        self.allow(len(self._sent))
        await self.fill.wait_stored()

    @asynccontextmanager
    async def _open(self, start: int) -> AsyncIterator[BlobDownload]:
        if not self._opens:
            await asyncio.Event().wait()
        self._at = start
        yield BlobDownload(self, "upstream", start, len(self.data), lambda host, count: None, 0.0)

    async def receive(self, consume: Callable[[memoryview], bool]) -> bool:
        """Pass on the bytes that may arrive, as `Transfer.receive`."""
        while self._at < len(self._sent):
            piece = memoryview(self._sent)[self._at : min(self._allowed, self._at + _PIECE)]
            if not piece:
                await self._changed.wait()
                continue
            self._at += len(piece)
            if not await asyncio.to_thread(consume, piece):
                return False
        return True
