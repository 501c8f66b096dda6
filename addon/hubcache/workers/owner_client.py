"""A worker's end: what the plugin needs of an engine, answered by the owner.

A worker whose owner is gone has nothing to say, and ends.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from ..oci.digest import Digest
from ..oci.errors import HubcacheError, StorageError, Unavailable
from ..oci.registry import Registry
from ..serve.errors import error_answer
from ..serve.messages import LAST_ATTEMPT, Answer, Change, Forward, Request
from ..store.stored_blob import StoredBlob, open_regular
from ..transfer.active_bodies import ActiveBodies
from ..transfer.body_delivery import BodyDelivery, log_broken_body
from ..transfer.body_listener import BodyListener
from ..transfer.fill import Fill
from ..transfer.sources import CHUNK, FileSource, FillSource, Source
from .answer_cache import AnswerCache
from .epoch import Epoch
from .frames import frame, pack_outcome, pack_request, read_frame, unpack_outcome

logger = logging.getLogger("hubcache")

_COUNT_SECONDS = 1.0


class OwnerClient:
    """The connection to the owner; `lost` is called when it is gone."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, epoch: Epoch, lost: Callable[[], None]
    ) -> None:
        active = ActiveBodies()
        self.body_delivery = BodyDelivery(active, self._sent, log_broken_body)
        self.body_listener = BodyListener(active, self._sent, log_broken_body)
        self._epoch = epoch
        self._repeats = AnswerCache(epoch)
        self._reader = reader
        self._writer = writer
        self._lost = lost
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[list[Any], bytes]]] = {}
        self._fills: dict[int, Fill] = {}
        """What goes on at the owner, by the number of who asked for it first."""
        self._opening: dict[int, Fill] = {}
        self._counts: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._told_running: int | None = None

    @classmethod
    async def connect(cls, owner: socket.socket, epoch: Epoch, lost: Callable[[], None]) -> Self:
        """Begin to speak with the owner by a socket that is connected with it, which is owned from now on."""
        remote = cls(*await asyncio.open_connection(sock=owner), epoch, lost)
        await remote.body_listener.start()
        remote._say(["at work"])
        remote._tasks = [asyncio.create_task(remote._listen()), asyncio.create_task(remote._tell_counts())]
        return remote

    async def close(self) -> None:
        """Stop; what was held is released by the owner."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):  # a defect of this program
                logger.error("hubcache: a worker does not understand its owner", exc_info=outcome)
        await self.body_listener.close()
        await self.body_delivery.close()
        self._tell()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def answer(self, request: Request) -> Answer | Forward | None:
        """As the engine's, or as it was a moment ago."""
        repeated = self._repeats.answer(request)
        if repeated is not None:
            if repeated.kind == "blob" and repeated.body:
                self._sent("store", len(repeated.body))
            return repeated
        epoch = self._epoch.number
        outcome = await self._ask_owner(request)
        self._repeats.keep(request, outcome, epoch)
        return outcome

    async def _ask_owner(self, request: Request) -> Answer | Forward | None:
        """The engine's answer. A file that was gone before it was opened here is asked for again.

        Its fill has ended: well, and the file has its final name now, or not. Where that happens again the blob is to
        come past the store, which needs no file.
        """
        for attempt in range(request.attempt, LAST_ATTEMPT + 1):
            number = next(self._numbers)
            head, body = pack_request(replace(request, attempt=attempt))
            try:
                (_, _, outcome_head, source), payload = await self._ask(["ask", number, head], body)
                outcome = unpack_outcome(outcome_head, payload)
                if source is not None:
                    assert isinstance(outcome, Answer)
                    outcome.source = self._open(number, source, request)
            except FileNotFoundError:
                self.release(number)
            except OSError as error:
                self.release(number)
                why = f"cannot open a stored blob: {error.strerror or error}"
                return error_answer(Unavailable(why), request.method)
            except Unavailable as error:
                return error_answer(error, request.method)
            else:
                return outcome
        raise AssertionError("what comes past the store has no file")

    async def content_changed(self, registry: Registry, moved: Change, subject: str | None = None) -> None:
        """As the engine's."""
        await self._ask(["moved", next(self._numbers), asdict(registry), moved, subject])

    def report_running(self, count: int) -> None:
        """So many downloads go on here, of a worker that is about to end."""
        if count != self._told_running:
            self._told_running = count
            self._say(["running", count])

    # -- bodies -----------------------------------------------------------------------------------------------------

    def _open(self, number: int, how: list[Any], request: Request) -> Source:
        match how:
            case ["file", path, start, end]:
                blob = StoredBlob(
                    open_regular(Path(path)),
                    end,
                    Path(path),
                    lambda: self._say(["close", number]),
                    lambda: self._say(["unreadable", number]),
                )
                return FileSource(blob, start, end)
            case ["fill", path, start, end, *_]:
                fill = self._opening.pop(number)
                fd = open_regular(Path(path))
                return FillSource(fill, Path(path), fd, start, end, self._again(request), lambda: self.release(number))
            case [_, origin, finished]:
                return _Asked(self, number, origin, finished)
        raise AssertionError(how)

    def _again(self, request: Request) -> Callable[[int, int], Source]:
        """The rest of a body whose file failed, by a new request for the range."""

        def ask(at: int, end: int) -> Source:
            headers = request.headers | {"range": f"bytes={at}-{end - 1}"}
            headers.pop("if-range", None)  # it was the range of the client, who has the beginning by now
            return _Again(self, replace(request, headers=headers, attempt=LAST_ATTEMPT))

        return ask

    async def read(self, number: int) -> tuple[bytes, bool]:
        """The next bytes of a source that the owner reads, and whether they were the last."""
        head, data = await self._ask(["read", number])
        return data, bool(head[2])

    def release(self, number: int) -> None:
        """A body was sent, or nobody wants it any more."""
        self._opening.pop(number, None)
        self._say(["close", number])

    def _sent(self, source: str, count: int) -> None:
        self._counts[source] += count

    async def _tell_counts(self) -> None:
        while True:
            await asyncio.sleep(_COUNT_SECONDS)
            self._tell()

    def _tell(self) -> None:
        if self._counts:
            self._say(["sent", self._counts])
            self._counts = Counter()
        for request, answer, count in self._repeats.take_counts():
            self._say(["again", next(self._numbers), pack_request(request)[0], pack_outcome(answer)[0], count])

    # -- frames -----------------------------------------------------------------------------------------------------

    def _say(self, head: list[Any], payload: bytes = b"") -> None:
        self._writer.write(frame(head, payload))

    async def _ask(self, head: list[Any], payload: bytes = b"") -> tuple[list[Any], bytes]:
        number = head[1]
        answer: asyncio.Future[tuple[list[Any], bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._say(head, payload)
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled():  # the answer came at the same moment, and nobody will have it
                self.release(number)
            raise
        finally:
            del self._waiting[number]

    async def _listen(self) -> None:
        try:
            while True:
                self._hear(*await read_frame(self._reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:  # after a defect of this program, too: who hears nothing is of no use
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Unavailable("the cache is shutting down"))
            self._lost()

    def _hear(self, head: list[Any], payload: bytes) -> None:
        match head:
            case ["readable", first, count]:
                self._fills[first].advance(count)
            case ["whole", first]:
                del self._fills[first]
            case ["broken", first, is_storage, message]:
                self._break_off(first, StorageError(message) if is_storage else Unavailable(message))
            case ["failed", number, message] if number in self._fills:
                self._break_off(number, Unavailable(message))
            case ["failed", number, message]:
                self._resolve(number, Unavailable(message))
            case ["answered", number, _, ["fill", _, _, _, first, digest]]:
                if first == number:  # now: its progress may come in the next frame
                    fill = self._fills[first] = Fill(Digest.parse(digest))
                    fill.verified = True  # the owner tells only what may be given
                self._opening[number] = self._fills[first]
                self._resolve(number, (head, payload))
            case ["answered" | "read" | "done", number, *_]:
                self._resolve(number, (head, payload))

    def _break_off(self, first: int, error: HubcacheError) -> None:
        fill = self._fills.pop(first)
        fill.error = error
        fill.notify()

    def _resolve(self, number: int, result: tuple[list[Any], bytes] | HubcacheError) -> None:
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            self.release(number)  # whoever asked has given up
        elif isinstance(result, HubcacheError):
            answer.set_exception(result)
        else:
            answer.set_result(result)


class _Asked(Source):
    """A source that the owner reads: bytes from the upstream, or a token service's answer."""

    def __init__(self, remote: OwnerClient, number: int, origin: str, finished: bool) -> None:
        self.origin = origin
        self._has_ended = finished
        self._remote = remote
        self._number = number

    async def read(self, most: int = CHUNK) -> bytes:
        if self.finished:
            return b""
        data, self._has_ended = await self._remote.read(self._number)
        return data

    @property
    def finished(self) -> bool:
        return self._has_ended

    async def close(self) -> None:
        self._remote.release(self._number)


class _Again(Source):
    """The rest of a body, asked for when it is first read."""

    origin = "upstream"

    def __init__(self, remote: OwnerClient, request: Request) -> None:
        self._remote = remote
        self._request = request
        self._source: Source | None = None

    async def read(self, most: int = CHUNK) -> bytes:
        if self._source is None:
            answer = await self._remote.answer(self._request)
            if isinstance(answer, Answer):
                self._source = answer.source
            if not isinstance(answer, Answer) or answer.status != 206 or self._source is None:
                raise Unavailable("the rest of the blob cannot be had")
        return await self._source.read(most)

    @property
    def finished(self) -> bool:
        return self._source is not None and self._source.finished

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()
