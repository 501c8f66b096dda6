"""A worker's end of the connection to the owner, which answers requests for it as the engine does.

A worker whose owner has ended cannot answer requests, and ends.
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
from ..operate.served_request import ServedRequest
from ..serve.answer_cache import AnswerCache
from ..serve.errors import error_answer
from ..serve.messages import LAST_ATTEMPT, Answer, Change, Forward, Request, Result
from ..store.stored_blob import StoredBlob, open_regular
from ..transfer.active_bodies import ActiveBodies
from ..transfer.body_delivery import BodyDelivery, log_broken_body
from ..transfer.body_listener import BodyListener
from ..transfer.fill import Fill
from ..transfer.sources import FileSource, FillSource, Source
from .epoch import Epoch
from .frames import frame, pack_outcome, pack_request, pack_served_request, read_frame, unpack_outcome
from .owner_sources import OwnerSource, RangeRequestSource
from .repeat_counts import RepeatCounts

logger = logging.getLogger("hubcache")

_REPORT_SECONDS = 1.0
"""Time between two reports of what was sent and repeated."""

ENDED_SECONDS = 0.05
"""The longest time after which the end of a request is reported: until then the owner takes it for running."""

MAX_UNREPORTED = 500
"""Requests that ended and were not reported yet, after which they are reported at once: a worker that is killed loses
them."""


class OwnerClient:
    """The connection to the owner."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, epoch: Epoch) -> None:
        active = ActiveBodies()
        self.body_delivery = BodyDelivery(active, self._count_sent, log_broken_body)
        self.body_listener = BodyListener(active, self._count_sent, log_broken_body)
        self._epoch = epoch
        self._cache = AnswerCache(lambda: epoch.number)
        self._repeats = RepeatCounts()
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[list[Any], bytes]]] = {}
        self._fills: dict[int, Fill] = {}
        """Fills that run at the owner, by the number of the first request for each."""
        self._opening: dict[int, Fill] = {}
        """Fills whose file is about to be opened, by the number of the request."""
        self._counts: Counter[str] = Counter()
        self._ended: list[ServedRequest] = []
        """Requests that ended and were not reported yet."""
        self._closed: list[int] = []
        """Requests whose files this worker has closed, which was not reported yet."""
        self._report_timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._reported_running: int | None = None

    @classmethod
    async def connect(cls, owner: socket.socket, epoch: Epoch, lost: Callable[[], None]) -> Self:
        """Return a client for a socket that is connected to the owner; the client closes the socket.

        `lost` is called when the connection ends before `close`.
        """
        client = cls(*await asyncio.open_connection(sock=owner), epoch)
        await client.body_listener.start()
        client._send(["ready"])
        receiving = asyncio.create_task(client._receive_frames())
        client._tasks = [receiving, asyncio.create_task(client._report_counts_periodically())]
        for task in client._tasks:
            task.add_done_callback(client._log_defect)
        receiving.add_done_callback(lambda task: None if task.cancelled() else lost())
        return client

    def _log_defect(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("hubcache: a worker failed to handle a message of its owner", exc_info=error)

    async def close(self) -> None:
        """Disconnect; the owner closes what was open for this worker."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.body_listener.close()
        await self.body_delivery.close()
        self._report_counts()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def answer(self, request: Request) -> Answer | Forward | None:
        """Return the engine's answer, or how to forward the request; None when its body must be received first.

        The answer may come from the cache of recent answers.
        """
        recent = self._cache.get(request)
        if recent is not None and self._repeats.add(recent, request):
            repeated = recent.repeat(without_owner=True)
            if repeated.kind == "blob" and repeated.body:
                self._count_sent("store", len(repeated.body))
            return repeated
        epoch = self._epoch.number
        outcome = await self._request_answer(request)
        self._cache.put(request, outcome, epoch)
        return outcome

    async def _request_answer(self, request: Request) -> Answer | Forward | None:
        """Request an answer from the owner; request it again if its file was removed before this worker opened it.

        The cause is a fill that has ended: its file now has its final name, or was discarded. The last attempt is
        answered with bytes from the upstream, which needs no file. The result is that of the first answer, which the
        owner counts: content that was fetched for the request is no hit, though its fill has ended.
        """
        result: Result | None = None
        for attempt in range(request.attempt, LAST_ATTEMPT + 1):
            number = next(self._numbers)
            head, body = pack_request(replace(request, attempt=attempt))
            try:
                (_, _, outcome_head, source), payload = await self._request(["request", number, head], body)
                outcome = unpack_outcome(outcome_head, payload if source is None else b"")
                if result is not None and isinstance(outcome, Answer):
                    outcome.result = result
                if source is not None:
                    assert isinstance(outcome, Answer)
                    outcome.source = self._open(number, source, request, payload)
            except FileNotFoundError:
                self.release(number)
                assert isinstance(outcome, Answer)
                result = result or outcome.result
            except OSError as error:
                self.release(number)
                why = f"cannot open a stored blob: {error.strerror or error}"
                return error_answer(Unavailable(why), request.method)
            except Unavailable as error:
                return error_answer(error, request.method)
            else:
                return outcome
        raise AssertionError("the last attempt is answered without a file")

    async def content_changed(self, registry: Registry, change: Change, subject: str | None = None) -> None:
        """Have the owner invalidate what an accepted push or delete changed; see `Responder`."""
        await self._request(["changed", next(self._numbers), asdict(registry), change, subject])

    def request_ended(self, request: ServedRequest) -> None:
        """Report a request that ended to the owner soon, with others, and before the next request to the owner."""
        self._ended.append(request)
        self._report_soon()

    def _file_closed(self, number: int) -> None:
        self._closed.append(number)
        self._report_soon()

    def _report_soon(self) -> None:
        if max(len(self._ended), len(self._closed)) >= MAX_UNREPORTED:
            self._report_ended()
        elif self._report_timer is None:
            self._report_timer = asyncio.get_running_loop().call_later(ENDED_SECONDS, self._report_ended)

    def _report_ended(self) -> None:
        if frames := self._take_ended():
            self._writer.write(frames)

    def _take_ended(self) -> bytes:
        """Return the frames that report what has ended, to be sent now."""
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None
        frames = b""
        if self._closed:
            frames = frame(["closed", self._closed])
            self._closed.clear()
        if self._ended:
            frames += frame(["ended", [pack_served_request(request) for request in self._ended]])
            self._ended.clear()
        return frames

    def report_running(self, count: int) -> None:
        """Report the number of running downloads while this worker is stopping."""
        if count != self._reported_running:
            self._reported_running = count
            self._send(["running", count])

    # -- bodies -----------------------------------------------------------------------------------------------------

    def _open(self, number: int, how: list[Any], request: Request, received: bytes) -> Source:
        match how:
            case ["file", path, start, end]:
                blob = StoredBlob(
                    open_regular(Path(path)),
                    end,
                    Path(path),
                    lambda: self._file_closed(number),
                    lambda: self._send(["unreadable", number]),
                )
                return FileSource(blob, start, end)
            case ["fill", path, start, end, *_]:
                fill = self._opening.pop(number)
                fd = open_regular(Path(path))
                return FillSource(
                    fill, Path(path), fd, start, end, self._fallback(request), lambda: self.release(number)
                )
            case [_, origin, finished]:
                return OwnerSource(lambda: self.read(number), lambda: self.release(number), origin, finished, received)
        raise AssertionError(how)

    def _fallback(self, request: Request) -> Callable[[int, int], Source]:
        """Return a source for the rest of a body whose file cannot be read: a new request for the range."""

        def request_rest(at: int, end: int) -> Source:
            headers = request.headers | {"range": f"bytes={at}-{end - 1}"}
            headers.pop("if-range", None)  # it applies to the client's range, part of which was sent
            return RangeRequestSource(self.answer, replace(request, headers=headers, attempt=LAST_ATTEMPT))

        return request_rest

    async def read(self, number: int) -> tuple[bytes, bool]:
        """Return the next bytes of a source that the owner reads, and whether they were the last."""
        head, data = await self._request(["read", number])
        return data, bool(head[2])

    def release(self, number: int) -> None:
        """Have the owner close the source of a request: its body was sent, or the client disconnected."""
        self._opening.pop(number, None)
        self._send(["close", number])

    def _count_sent(self, source: str, count: int) -> None:
        self._counts[source] += count

    async def _report_counts_periodically(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            self._report_counts()

    def _report_counts(self) -> None:
        if self._counts:
            self._send(["sent", self._counts])
            self._counts = Counter()
        self._report_ended()
        for request, answer, count in self._repeats.take():
            self._send(["repeated", next(self._numbers), pack_request(request)[0], pack_outcome(answer)[0], count])

    # -- frames -----------------------------------------------------------------------------------------------------

    def _send(self, head: list[Any], payload: bytes = b"") -> None:
        self._writer.write(self._take_ended() + frame(head, payload))

    async def _request(self, head: list[Any], payload: bytes = b"") -> tuple[list[Any], bytes]:
        number = head[1]
        answer: asyncio.Future[tuple[list[Any], bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._send(head, payload)
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled():  # the answer arrived at the same moment, and is not used
                self.release(number)
            raise
        finally:
            del self._waiting[number]

    async def _receive_frames(self) -> None:
        try:
            while True:
                self._receive(*await read_frame(self._reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:  # after a defect of this program, too: a worker that receives nothing cannot work
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Unavailable("the cache is shutting down"))

    def _receive(self, head: list[Any], payload: bytes) -> None:
        match head:
            case ["readable", first, count]:
                self._fills[first].advance(count)
            case ["complete", first]:
                del self._fills[first]
            case ["broken", first, is_storage, message]:
                self._fail_fill(first, StorageError(message) if is_storage else Unavailable(message))
            case ["failed", number, message] if number in self._fills:
                self._fail_fill(number, Unavailable(message))
            case ["failed", number, message]:
                self._resolve(number, Unavailable(message))
            case ["answered", number, _, ["fill", _, _, _, first, digest]]:
                if first == number:  # now, as its progress may be in the next frame
                    fill = self._fills[first] = Fill(Digest.parse(digest))
                    fill.verified = True  # the owner reports only bytes that may be sent
                self._opening[number] = self._fills[first]
                self._resolve(number, (head, payload))
            case ["answered" | "read" | "done", number, *_]:
                self._resolve(number, (head, payload))

    def _fail_fill(self, first: int, error: HubcacheError) -> None:
        fill = self._fills.pop(first)
        fill.error = error
        fill.notify()

    def _resolve(self, number: int, result: tuple[list[Any], bytes] | HubcacheError) -> None:
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            self.release(number)  # the request was cancelled
        elif isinstance(result, HubcacheError):
            answer.set_exception(result)
        else:
            answer.set_result(result)
