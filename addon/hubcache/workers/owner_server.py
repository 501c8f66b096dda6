"""The owner's end: answers what workers ask, and holds what they are sending until they are done with it.

Bytes of stored and arriving blobs are not passed: the worker opens the file itself, and is told how far it may read.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ..oci.errors import HubcacheError, StorageError
from ..oci.registry import Registry
from ..serve.messages import Answer, Change, Request
from ..serve.responder import CountingResponder
from ..transfer.fill import Fill
from ..transfer.parallel_range import ParallelRange
from ..transfer.sources import FileSource, FillSource, Source
from .frames import frame, pack_outcome, read_frame, unpack_outcome, unpack_request

logger = logging.getLogger("hubcache")

_PACE_SECONDS = 0.04
"""A worker is told of a fill's progress no more often than this: each time costs a frame and a look by each reader."""


class OwnerServer:
    """Serves workers' connections; `changed` is called when one comes or goes."""

    def __init__(self, responder: CountingResponder, changed: Callable[[int], None]) -> None:
        self._responder = responder
        self._changed = changed
        self._serving: set[asyncio.Task[None]] = set()
        self._running: dict[asyncio.Task[None], int] = {}
        """Downloads of workers that are about to end, and of those that have ended: the latter were cut."""

    @property
    def running(self) -> int:
        """How many downloads go on in workers that are about to end, or were cut when they did."""
        return sum(self._running.values())

    @property
    def have_reported(self) -> bool:
        """Whether all workers have begun to end, and told of their downloads."""
        return self._serving <= self._running.keys()

    @property
    def connected(self) -> int:
        """How many workers there are."""
        return len(self._serving)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One worker, from when it is at work until it is gone; what it held is released then."""
        try:
            await read_frame(reader)  # it says that it is at work
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._changed(self.connected)
        conversation = _Conversation(self._responder, writer)
        try:
            while True:
                head, payload = await read_frame(reader)
                if head[0] == "running":
                    self._running[task] = head[1]
                else:
                    conversation.hear(head, payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the worker ended; whoever started it says why
        finally:
            self._serving.discard(task)
            self._changed(self.connected)
            await conversation.close()
            writer.close()


class _Conversation:
    """With one worker: what it asked, by the number that it gave."""

    def __init__(self, responder: CountingResponder, writer: asyncio.StreamWriter) -> None:
        self._responder = responder
        self._writer = writer
        self._sources: dict[int, Source] = {}
        self._told: dict[Fill, int] = {}
        """Of whose progress the worker is being told, once for all its readers, by the number of the first."""
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def hear(self, head: list[Any], payload: bytes) -> None:
        """Act on one frame."""
        match head:
            case ["ask", number, request]:
                self._spawn(number, self._answer(number, unpack_request(request, payload)))
            case ["read", number] if number in self._sources:
                self._reading[number] = self._spawn(number, self._read(number, self._sources[number]))
            case ["unreadable", number] if isinstance(source := self._sources.get(number), FileSource):
                source.unreadable()
            case ["close", number] if number in self._sources:
                closing = self._spawn(number, self._close(number, self._sources.pop(number)))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            case ["again", _, request, answer, count]:
                given = unpack_outcome(answer, b"")
                assert isinstance(given, Answer)
                self._responder.count_repeats(unpack_request(request, payload), given, count)
            case ["moved", number, registry, moved, subject]:
                self._spawn(number, self._moved(number, Registry(**registry), Change(*moved), subject))
            case ["sent", counts]:
                for source, count in counts.items():
                    self._responder.count_sent(source, count)

    def _spawn(self, number: int, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:  # a defect of this program: told to both sides, or the client would wait for ever
                logger.error("hubcache: a request failed", exc_info=error)
                self._say(["failed", number, "internal error"])

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    def _say(self, head: list[Any], payload: bytes = b"") -> None:
        self._writer.write(frame(head, payload))

    async def _answer(self, number: int, request: Request) -> None:
        outcome = await self._responder.answer(request)
        source = outcome.source if isinstance(outcome, Answer) else None
        if source is not None:
            self._sources[number] = source
        if isinstance(source, ParallelRange):
            source = await source.choose_source()
        head, payload = pack_outcome(outcome)
        self._say(["answered", number, head, self._describe(number, source)], payload)
        if isinstance(source, FillSource) and self._told[source.fill] == number:
            await self._tell_progress(number, source.fill)

    def _describe(self, number: int, source: Source | None) -> list[Any] | None:
        """How the worker gets at a source's bytes: the file, or (`origin`, whether there are none) by asking for them.
        Of a fill it is told under the number of who asked for it first."""
        match source:
            case None:
                return None
            case FileSource():
                return ["file", str(source.path), source.at, source.end]
            case FillSource(fill=fill):
                first = self._told.setdefault(fill, number)
                return ["fill", str(source.path), source.at, source.end, first, str(fill.digest)]
        return ["bytes", source.origin, source.finished]

    async def _moved(self, number: int, registry: Registry, moved: Change, subject: str | None) -> None:
        await self._responder.content_changed(registry, moved, subject)
        self._say(["done", number])

    async def _tell_progress(self, number: int, fill: Fill) -> None:
        """Until the fill has ended, like that whether or not anybody still reads it."""
        assert fill.size is not None
        told = 0
        try:
            while told < fill.size:
                await fill.wait_readable(told + 1)
                told = fill.readable
                self._say(["readable", number, told])
                await fill.wait_readable(fill.size, _PACE_SECONDS)
            self._say(["whole", number])
        except HubcacheError as error:
            self._say(["broken", number, isinstance(error, StorageError), str(error)])
        finally:
            del self._told[fill]

    async def _read(self, number: int, source: Source) -> None:
        try:
            data = await source.read()
        except HubcacheError as error:
            self._say(["failed", number, str(error)])
            return
        self._say(["read", number, source.finished], data)

    async def _close(self, number: int, source: Source) -> None:
        """Close a source, but not under its reader."""
        reading = self._reading.pop(number, None)
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await source.close()

    async def close(self) -> None:
        """Give up what the worker asked."""
        for task in self._tasks - self._closing:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for source in self._sources.values():
            await source.close()
