"""Answers the requests of workers in the owner, and keeps stored blobs open until workers have sent them.

The bytes of stored blobs and of fills do not pass through the socket: the worker opens the file itself, and receives
how far it may read.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ..oci.errors import HubcacheError, StorageError
from ..oci.registry import Registry
from ..operate.served_request import RecordingResponder
from ..serve.messages import Answer, Change, Request
from ..serve.responder import CountingResponder
from ..transfer.fill import Fill
from ..transfer.parallel_range import ParallelRange
from ..transfer.sources import BytesSource, FileSource, FillSource, Source
from .frames import frame, pack_outcome, read_frame, unpack_outcome, unpack_request, unpack_served_request
from .unended_requests import UnendedRequests

logger = logging.getLogger("hubcache")

_PROGRESS_SECONDS = 0.04
"""The shortest time between two messages about a fill's progress: each costs a frame and wakes up each reader."""


class OwnerResponder(CountingResponder, RecordingResponder, Protocol):
    """What the owner answers requests of its workers with."""


class OwnerServer:
    """Serves the connections of workers; calls `changed` with the number of connected workers when it changes."""

    def __init__(self, responder: OwnerResponder, changed: Callable[[int], None]) -> None:
        self._responder = responder
        self._changed = changed
        self._serving: set[asyncio.Task[None]] = set()
        self._running: dict[asyncio.Task[None], int] = {}
        """Number of downloads of workers that are stopping, and of those that have ended: the latter were cut."""

    @property
    def running(self) -> int:
        """Number of downloads in stopping workers, and of those that were cut off when their worker ended."""
        return sum(self._running.values())

    @property
    def have_reported(self) -> bool:
        """Whether all workers are stopping and have reported their downloads."""
        return self._serving <= self._running.keys()

    @property
    def connected(self) -> int:
        """Number of connected workers."""
        return len(self._serving)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one worker, from when it is ready until it disconnects; then release what it held."""
        try:
            await read_frame(reader)  # "ready"
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._changed(self.connected)
        connection = WorkerConnection(self._responder, writer)
        try:
            while True:
                head, payload = await read_frame(reader)
                if head[0] == "running":
                    self._running[task] = head[1]
                else:
                    connection.receive(head, payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the worker ended; the supervisor logs why
        finally:
            self._serving.discard(task)
            self._changed(self.connected)
            await connection.close()
            writer.close()


class WorkerConnection:
    """The requests of one worker, by the numbers that the worker gave them."""

    def __init__(self, responder: OwnerResponder, writer: asyncio.StreamWriter) -> None:
        self._responder = responder
        self._writer = writer
        self._sources: dict[int, Source] = {}
        self._reported: dict[Fill, int] = {}
        """Fills whose progress is reported, once for all their readers, by the number of the first request."""
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._unended = UnendedRequests(responder.request_ended)

    def receive(self, head: list[Any], payload: bytes) -> None:
        """Handle one frame from the worker."""
        match head:
            case ["request", number, request]:
                self._answer_soon(number, unpack_request(request, payload))
            case ["read", number] if number in self._sources:
                self._reading[number] = self._spawn(number, self._read(number, self._sources[number]))
            case ["unreadable", number] if isinstance(source := self._sources.get(number), FileSource):
                source.unreadable()
            case ["close", number]:
                self._close_soon(number)
            case ["closed", numbers]:
                for number in numbers:
                    self._close_soon(number)
            case ["repeated", _, request, answer, count]:
                repeated = unpack_outcome(answer, b"")
                assert isinstance(repeated, Answer)
                self._responder.count_repeats(unpack_request(request, payload), repeated, count)
            case ["ended", requests]:
                for values in requests:
                    ended = unpack_served_request(values)
                    self._unended.end(ended)
                    self._responder.request_ended(ended)
            case ["changed", number, registry, change, subject]:
                self._spawn(number, self._content_changed(number, Registry(**registry), Change(*change), subject))
            case ["sent", counts]:
                for source, count in counts.items():
                    self._responder.count_sent(source, count)

    def _answer_soon(self, number: int, request: Request) -> None:
        if not request.attempt:
            self._unended.begin(request)
        self._spawn(number, self._answer(number, request))

    def _spawn(self, number: int, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:  # a defect of this program; the worker's client must not wait forever
                logger.error("hubcache: a request failed", exc_info=error)
                self._send(["failed", number, "internal error"])

        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        if task.done():
            ended(task)
        else:
            self._tasks.add(task)
            task.add_done_callback(ended)
        return task

    def _send(self, head: list[Any], payload: bytes = b"") -> None:
        self._writer.write(frame(head, payload))

    async def _answer(self, number: int, request: Request) -> None:
        outcome = await self._responder.answer(request)
        source = outcome.source if isinstance(outcome, Answer) else None
        if source is not None:
            self._sources[number] = source
        if isinstance(source, ParallelRange):
            source = await source.choose_source()
        head, payload = pack_outcome(outcome)
        if isinstance(source, BytesSource):  # with the answer, as it is in memory
            payload = await source.read()
        self._send(["answered", number, head, self._describe(number, source)], payload)
        if isinstance(source, FillSource) and self._reported[source.fill] == number:
            await self._report_progress(number, source.fill)

    def _describe(self, number: int, source: Source | None) -> list[Any] | None:
        """Return how the worker reads a source: from a file, or by requests for its bytes (`origin`, whether it ended).
        Bytes in memory are sent with the answer.

        A fill's progress is reported under the number of the first request for it.
        """
        match source:
            case None:
                return None
            case FileSource():
                return ["file", str(source.path), source.at, source.end]
            case FillSource(fill=fill):
                first = self._reported.setdefault(fill, number)
                return ["fill", str(source.path), source.at, source.end, first, str(fill.digest)]
        return ["bytes", source.origin, source.finished]

    async def _content_changed(self, number: int, registry: Registry, change: Change, subject: str | None) -> None:
        await self._responder.content_changed(registry, change, subject)
        self._send(["done", number])

    async def _report_progress(self, number: int, fill: Fill) -> None:
        """Report the progress of a fill until it ends, whether or not a client still reads it."""
        assert fill.size is not None
        reported = 0
        try:
            while reported < fill.size:
                await fill.wait_readable(reported + 1)
                reported = fill.readable
                self._send(["readable", number, reported])
                await fill.wait_readable(fill.size, _PROGRESS_SECONDS)
            self._send(["complete", number])
        except HubcacheError as error:
            self._send(["broken", number, isinstance(error, StorageError), str(error)])
        finally:
            del self._reported[fill]

    async def _read(self, number: int, source: Source) -> None:
        try:
            data = await source.read()
        except HubcacheError as error:
            self._send(["failed", number, str(error)])
            return
        self._send(["read", number, source.finished], data)

    def _close_soon(self, number: int) -> None:
        source = self._sources.pop(number, None)
        if source is not None:
            closing = self._spawn(number, self._close(number, source))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self, number: int, source: Source) -> None:
        """Close a source, after its reader has ended."""
        reading = self._reading.pop(number, None)
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await source.close()

    async def close(self) -> None:
        """Cancel the worker's requests and close their sources."""
        for task in self._tasks - self._closing:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for source in self._sources.values():
            await source.close()
        self._unended.fail()
