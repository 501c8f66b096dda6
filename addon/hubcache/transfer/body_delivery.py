"""Sends the bodies of answers to clients' connections, each at the pace of its client."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from ..oci.errors import HubcacheError
from .active_bodies import ActiveBodies
from .body_progress import BodyProgress
from .file_part import FilePart
from .sources import Source

logger = logging.getLogger("hubcache")

COUNT_SECONDS = 1.0
"""Time between two reports of the bytes that were sent of bodies: a report of each chunk took up to a quarter of the
time of the delivery, without reading and writing."""


class BodyWriter(Protocol):
    """Writes to a client's connection. `write`, `write_from` and `drain` raise `OSError` when the client has
    disconnected."""

    chunk_size: int
    """Bytes that are best sent at once."""

    def write(self, data: bytes) -> None:
        """Send what the socket accepts now, and keep the rest."""

    def write_from(self, part: FilePart, most: int, taken: Callable[[int], None]) -> None:
        """Send bytes of a file while the socket accepts them, for a millisecond or two at most, so that other clients
        are not delayed; keep the rest of the last chunk. Bytes that must be read are read in chunks of `most`. `taken`
        receives the number of bytes that were sent or are kept, in one call or several, also before an error."""

    async def drain(self) -> None:
        """Wait until most of the kept data is sent."""

    def close(self) -> None:
        """Close the connection once the kept data is sent."""


class BodyDelivery:
    """Delivers bodies. `on_sent` receives a source's metric label and a number of bytes, at the end of a body and every
    `COUNT_SECONDS` before; `on_failure` receives the error that cut a body short."""

    def __init__(
        self,
        active: ActiveBodies,
        on_sent: Callable[[str, int], None],
        on_failure: Callable[[HubcacheError], None],
    ) -> None:
        self._active = active
        self._on_sent = on_sent
        self._on_failure = on_failure
        self._tasks: dict[asyncio.Task[None], _SentCount] = {}
        """The running deliveries, and the counts of their bytes."""
        self._report_timer: asyncio.TimerHandle | None = None

    async def send(self, head: bytes, source: Source, writer: BodyWriter, progress: BodyProgress | None = None) -> None:
        """Send an answer: its head, then the body. When the body is cut short the connection is closed, so that the
        client notices. `progress` is updated meanwhile."""
        progress = progress or BodyProgress()
        count = _SentCount(self._on_sent, source, progress)
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = count
        if self._report_timer is None:
            self._report_timer = asyncio.get_running_loop().call_later(COUNT_SECONDS, self._report)
        try:
            with self._active.counted():
                writer.write(head)
                while not source.finished:
                    before = time.monotonic()
                    await writer.drain()
                    now = time.monotonic()
                    progress.client_wait += now - before
                    await self._send_chunk(source, writer, progress, now)
                    if not source.finished:  # after the last chunk the client may disconnect: wait for nothing more
                        await asyncio.sleep(0)  # a client that accepts all data at once must not occupy the event loop
            progress.is_complete = True
        except HubcacheError as error:
            progress.error = str(error)
            self._on_failure(error)
        except OSError:
            pass  # the client disconnected
        finally:
            del self._tasks[task]
            if not progress.is_complete:
                writer.close()
            count.report()
            await source.close()

    def _report(self) -> None:
        """Report the bytes of all bodies that are being sent, and again later if there are any."""
        for count in self._tasks.values():
            count.report()
        later = asyncio.get_running_loop().call_later
        self._report_timer = later(COUNT_SECONDS, self._report) if self._tasks else None

    async def _send_chunk(self, source: Source, writer: BodyWriter, progress: BodyProgress, before: float) -> None:
        """Send the next bytes of a source; `before` is the present time."""
        part = await source.file_part()
        if part is not None:
            progress.source_wait += time.monotonic() - before
            writer.write_from(part, self._active.chunk_size(writer.chunk_size), progress.add_sent)
        else:
            chunk = await source.read(self._active.chunk_size(writer.chunk_size))
            progress.source_wait += time.monotonic() - before
            writer.write(chunk)
            progress.add_sent(len(chunk))

    async def close(self) -> None:
        """Cancel the deliveries that are running."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._report_timer is not None:
            self._report_timer.cancel()


class _SentCount:
    """Reports the bytes of one body that were sent since the last report."""

    def __init__(self, on_sent: Callable[[str, int], None], source: Source, progress: BodyProgress) -> None:
        self._on_sent = on_sent
        self._source = source
        self._progress = progress
        self._reported = progress.sent

    def report(self) -> None:
        """Report the bytes, if any."""
        sent = self._progress.sent
        if sent > self._reported:
            self._on_sent(self._source.origin, sent - self._reported)
            self._reported = sent


def log_broken_body(error: HubcacheError) -> None:
    """Log why a body was cut short."""
    logger.warning("hubcache: a body broke off: %s", error)
