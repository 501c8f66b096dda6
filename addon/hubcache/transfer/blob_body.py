"""The body of a blob while it arrives from an upstream."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp

from ..oci.errors import Unavailable
from .download_response import DownloadResponse
from .observer import Observer


class BlobBody:
    """A blob's body from byte `start`; `size` is that of the whole blob, None when the upstream does not report it.

    `answered_at`: the registry sent the blob at that time or later, in seconds since the epoch by this machine's clock.
    It is None when the bytes come from elsewhere and the registry was not asked, so that they do not show who may read
    the blob.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        start: int,
        size: int | None,
        observer: Observer,
        answered_at: float | None,
    ) -> None:
        self.start = start
        self.size = size
        self.answered_at = answered_at
        self._response = response
        self._observer = observer

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive; raises `Unavailable` when the connection breaks, stalls or ends early."""
        host = self._response.url.authority
        try:
            async for chunk in self._response.content.iter_any():
                self._observer.upstream_bytes(host, len(chunk))
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _broken(host, error) from error


class BlobDownload:
    """As `BlobBody`, but the bytes are received in a thread."""

    def __init__(
        self,
        response: DownloadResponse,
        start: int,
        size: int | None,
        observer: Observer,
        answered_at: float | None,
    ) -> None:
        self.start = start
        self.size = size
        self.answered_at = answered_at
        self._response = response
        self._observer = observer
        self._received = self._reported = 0
        """Bytes that the thread has received, and those that were reported to the observer."""

    async def receive(self, consume: Callable[[memoryview], bool], arrived: Callable[[], None]) -> bool:
        """Pass bytes to `consume` as they arrive, in a thread, until it returns False; returns whether the body has
        ended.

        `arrived` is called in the event loop, some time after each of these calls. Raises what `consume` raises, and
        `Unavailable` when the connection breaks or stalls; a body that ends early is no error here.
        """
        host, loop = self._response.url.authority, asyncio.get_running_loop()
        is_scheduled = False

        def report() -> None:
            nonlocal is_scheduled
            is_scheduled = False
            received = self._received
            if received > self._reported:
                self._observer.upstream_bytes(host, received - self._reported)
                self._reported = received
                arrived()

        def consume_and_report(data: memoryview) -> bool:
            nonlocal is_scheduled
            goes_on = consume(data)
            self._received += len(data)
            if not is_scheduled:  # one call of the loop for all bytes that arrive until it runs
                is_scheduled = True
                loop.call_soon_threadsafe(report)
            return goes_on

        try:
            return await self._response.receive(consume_and_report)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _broken(host, error) from error
        finally:
            report()


def _broken(host: str, error: Exception) -> Unavailable:
    return Unavailable(f"transfer from {host} broke off: {type(error).__name__}")
