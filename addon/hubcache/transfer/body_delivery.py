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
    """Delivers bodies. `on_sent` receives a source's metric label and a number of bytes, `on_failure` the error that
    cut a body short."""

    def __init__(
        self,
        active: ActiveBodies,
        on_sent: Callable[[str, int], None],
        on_failure: Callable[[HubcacheError], None],
    ) -> None:
        self._active = active
        self._on_sent = on_sent
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, head: bytes, source: Source, writer: BodyWriter, progress: BodyProgress | None = None) -> None:
        """Send an answer: its head, then the body. When the body is cut short the connection is closed, so that the
        client notices. `progress` is updated meanwhile."""
        progress = progress or BodyProgress()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with self._active.counted():
                writer.write(head)
                while not source.finished:
                    before = time.monotonic()
                    await writer.drain()
                    progress.client_wait += time.monotonic() - before
                    await self._send_chunk(source, writer, progress)
                    if not source.finished:  # after the last chunk the client may disconnect: wait for nothing more
                        await asyncio.sleep(0)  # a client that accepts all data at once must not occupy the event loop
            progress.is_complete = True
        except HubcacheError as error:
            progress.error = str(error)
            self._on_failure(error)
        except OSError:
            pass  # the client disconnected
        finally:
            self._tasks.discard(task)
            if not progress.is_complete:
                writer.close()
            await source.close()

    async def _send_chunk(self, source: Source, writer: BodyWriter, progress: BodyProgress) -> None:
        """Send the next bytes of a source."""

        def taken(count: int) -> None:
            progress.sent += count
            self._on_sent(source.origin, count)

        before = time.monotonic()
        part = await source.file_part()
        if part is not None:
            progress.source_wait += time.monotonic() - before
            writer.write_from(part, self._active.chunk_size(writer.chunk_size), taken)
        else:
            chunk = await source.read(self._active.chunk_size(writer.chunk_size))
            progress.source_wait += time.monotonic() - before
            writer.write(chunk)
            taken(len(chunk))

    async def close(self) -> None:
        """Cancel the deliveries that are running."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def log_broken_body(error: HubcacheError) -> None:
    """Log why a body was cut short."""
    logger.warning("hubcache: a body broke off: %s", error)
