"""The body of a blob while it arrives, from an upstream or from elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import aiohttp

from ..oci.errors import Unavailable
from .download_response import Consume
from .http_response import HttpBody

_REPORT_SECONDS = 0.01
"""Time between two reports of received bytes to the event loop. A report of each piece woke the loop up to 2,300 times
for each GB. CPU s/GB of `cold-pull` in `scripts/bench`: 2.84 with a report of each piece, 2.71 with one every 5 ms and
2.68 with one every 15 ms; a pull took as long."""

type Report = Callable[[str, int], None]
"""Gets the name of the host that sends a body, and a number of bytes that have arrived."""


class Transfer(Protocol):
    """Bytes that are received in a thread, such as those of a `DownloadResponse`."""

    async def receive(self, consume: Consume) -> bool:
        """Pass bytes to `consume`, in a thread, until that returns False; returns whether the body has ended.

        Raises `Unavailable`, `aiohttp.ClientError` or `TimeoutError` when the transfer breaks off.
        """


class BlobBody:
    """A blob's body from byte `start`; `size` is that of the whole blob, None when the upstream does not report it.

    `answered_at`: the registry sent the blob at that time or later, in seconds since the epoch by this machine's clock.
    It is None when the bytes come from elsewhere and the registry was not asked, so that they do not show who may read
    the blob.
    """

    def __init__(
        self,
        content: HttpBody,
        host: str,
        start: int,
        size: int | None,
        report: Report,
        answered_at: float | None,
    ) -> None:
        self.start = start
        self.size = size
        self.answered_at = answered_at
        self._content = content
        self._host = host
        self._report = report

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive; raises `Unavailable` when the connection breaks, stalls or ends early."""
        try:
            async for chunk in self._content.iter_any():
                self._report(self._host, len(chunk))
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _broken(self._host, error) from error


class BlobDownload:
    """As `BlobBody`, but the bytes are received in a thread."""

    def __init__(
        self,
        transfer: Transfer,
        host: str,
        start: int,
        size: int | None,
        report: Report,
        answered_at: float | None,
    ) -> None:
        self.start = start
        self.size = size
        self.answered_at = answered_at
        self._transfer = transfer
        self._host = host
        self._report = report
        self._received = self._reported = 0
        """Bytes that the thread has received, and those that were reported."""

    async def receive(self, consume: Callable[[memoryview], bool], arrived: Callable[[], None]) -> bool:
        """Pass bytes to `consume` as they arrive, in a thread, until it returns False; returns whether the body has
        ended.

        `arrived` is called in the event loop, at once for the first of these calls, and within `_REPORT_SECONDS` for
        others. Raises what `consume` raises, and `Unavailable` when the connection breaks or stalls; a body that ends
        early is no error here.
        """
        loop = asyncio.get_running_loop()
        is_scheduled = False
        timer: asyncio.TimerHandle | None = None

        def report() -> None:
            nonlocal is_scheduled, timer
            if timer is not None:  # the thread may have called the loop although there is a timer
                timer.cancel()
            is_scheduled = False  # before the bytes are counted: the thread adds to them, and then reads this
            received = self._received
            if received > self._reported:
                self._report(self._host, received - self._reported)
                self._reported = received
                arrived()
                is_scheduled = True
                timer = loop.call_later(_REPORT_SECONDS, report)

        def consume_and_report(data: memoryview) -> bool:
            nonlocal is_scheduled
            goes_on = consume(data)
            self._received += len(data)
            if not is_scheduled:  # one call of the loop for all bytes that arrive until it runs
                is_scheduled = True
                loop.call_soon_threadsafe(report)
            return goes_on

        try:
            return await self._transfer.receive(consume_and_report)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _broken(self._host, error) from error
        finally:
            report()
            if timer is not None:
                timer.cancel()


def _broken(host: str, error: Exception) -> Unavailable:
    return Unavailable(f"transfer from {host} broke off: {type(error).__name__}")
