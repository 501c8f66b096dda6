"""Bodies of blobs that come from the bucket."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from ..oci.digest import Verifier
from ..oci.errors import BadUpstream, Unavailable
from ..transfer.download_response import Consume
from .blob_read import BlobRead
from .bucket import BucketUnavailable
from .threads import run_in_thread

_SLOW_SECONDS = 10.0
_SLOW_BYTES = 1_000_000
"""A transfer that brings fewer bytes in this time is broken off: the registry sends the rest."""


class BucketTransfer:
    """The bytes of an object, received in a thread: a `Transfer`.

    One thread receives, hashes and writes; meanwhile a thread of the client's library and the kernel receive more.
    Measured with SeaweedFS on two cores: 1.65 s for a gigabyte into a file, of which 1.2 s are CPU time. With another
    thread that read the next chunk ahead it took as long, and 1.5 s of CPU time.
    """

    def __init__(self, chunks: Iterator[memoryview]) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._is_consuming = False
        self._received = 0
        """Bytes that were passed on."""

    async def receive(self, consume: Consume) -> bool:
        """Pass the bytes on, see `Transfer.receive`; raises `Unavailable` when the transfer breaks off or is too slow.

        When this is cancelled, the thread may still wait for bytes, but passes none on.
        """
        receiving = run_in_thread(lambda: self._receive(consume))
        try:
            while not receiving.done():
                before = self._received
                await asyncio.wait([receiving], timeout=_SLOW_SECONDS)
                is_slow = self._received < before + _SLOW_BYTES and not self._is_consuming
                if is_slow and not receiving.done():
                    await self._abandon(receiving)
                    raise Unavailable(f"the bucket sent less than {_SLOW_BYTES} bytes in {_SLOW_SECONDS:g} seconds")
            return receiving.result()
        except BucketUnavailable as error:
            raise Unavailable(str(error)) from error
        except asyncio.CancelledError:
            await self._abandon(receiving)
            raise

    async def _abandon(self, receiving: asyncio.Future[bool]) -> None:
        """Have the thread pass on no more bytes after the chunk that it passes on now."""
        receiving.add_done_callback(_retrieve)
        with self._lock:
            self._is_cancelled, is_consuming = True, self._is_consuming
        while is_consuming and not receiving.done():
            with suppress(asyncio.CancelledError):  # a second cancellation
                await asyncio.wait([receiving])

    def _receive(self, consume: Consume) -> bool:
        for chunk in self._chunks:
            with self._lock:
                if self._is_cancelled:
                    return False
                self._is_consuming = True
            goes_on = consume(chunk)
            with self._lock:
                self._is_consuming = False
                self._received += len(chunk)
                if self._is_cancelled or not goes_on:
                    return False
            del chunk  # the next one gets its memory, which is in the processor's cache
        return True


class BucketContent:
    """The bytes of a whole object: an `HttpBody`. The registry sends the rest when the bucket breaks off.

    The last chunk is held back until the digest is verified, so that no client receives wrong bytes of the bucket as a
    complete body.
    """

    def __init__(
        self,
        chunks: Iterator[memoryview],
        read: BlobRead,
        size: int,
        report: Callable[[int], None],
        report_mismatch: Callable[[], None],
    ) -> None:
        """`report` receives numbers of bytes that came from the bucket; `report_mismatch` is called when the bytes do
        not match the digest."""
        self._chunks = chunks
        self._read = read
        self._size = size
        self._report = report
        self._report_mismatch = report_mismatch
        self._verifier = Verifier(read.digest, size)

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive.

        Raises `RegistryError` when the registry does not send the rest either, `BadUpstream` when the digest differs.
        """
        async for chunk in self._from_bucket():
            self._verify_if_complete()
            yield chunk
        if not self._size:
            self._verify_if_complete()
        if self._verifier.received >= self._size:
            return
        async with self._read.open(self._verifier.received, self._size) as rest:
            skip = self._verifier.received - rest.start
            async for chunk in rest.chunks():
                new = chunk[skip:]
                skip = max(0, skip - len(chunk))
                self._verifier.update(new)
                self._verify_if_complete()
                yield new

    async def _from_bucket(self) -> AsyncIterator[bytes]:
        with suppress(BucketUnavailable):
            while self._verifier.received < self._size and (chunk := await run_in_thread(self._next)) is not None:
                self._report(len(chunk))
                yield bytes(chunk)

    def _next(self) -> memoryview | None:
        """Return the next chunk after hashing it, in a thread."""
        chunk = next(self._chunks, None)
        if chunk is not None:
            self._verifier.update(chunk)
        return chunk

    def _verify_if_complete(self) -> None:
        if self._verifier.received == self._size:
            try:
                self._verifier.finish()
            except BadUpstream:
                self._report_mismatch()
                raise


def _retrieve(future: asyncio.Future[bool]) -> None:
    """Mark the exception of a future that is not awaited any more as retrieved."""
    if not future.cancelled():
        future.exception()
