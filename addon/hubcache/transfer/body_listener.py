"""The loopback listener from which mitmproxy fetches the bodies of answers.

mitmproxy sends an answer that an addon sets as a whole, from memory, and streams a server's answer in pieces of 64 KiB
at a fixed cost for each. A flow with a large body is therefore pointed at this HTTP server on 127.0.0.1. The server
sends *one placeholder byte per chunk of the body*; the flow's `stream` callable replaces the byte with the chunk. The
next byte is sent only after the previous one was replaced, which mitmproxy does only after the client's socket accepted
the chunk before. No content crosses the loopback connection, and another program that connects gets nothing without a
one-time path.

The transfer coding is chunked (RFC 9112 section 7.1), since the number of chunks of a growing file is not known.

Answers that can be written to the client's connection directly are sent by `body_delivery` instead.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

from ..oci.errors import HubcacheError
from .active_bodies import ActiveBodies
from .body_progress import BodyProgress
from .sources import CHUNK, Source

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
_PLACEHOLDER = b"1\r\nx\r\n"
_END = b"0\r\n\r\n"

_PATH_SECONDS = 60.0
"""How long a path is valid, and how long a connection may take to send its request."""


class StreamedBody:
    """One body for one client; `stream` is the flow's `stream` callable."""

    def __init__(self, source: Source, on_sent: Callable[[str, int], None]) -> None:
        self.source = source
        self.progress = BodyProgress()
        self._on_sent = on_sent
        self._chunk = b""
        self._taken = asyncio.Event()
        self.closed = False
        self.sending: asyncio.Future[None] | None = None
        """The task that reads the source."""
        self.failure: HubcacheError | None = None
        """Why the body was cut short."""

    def stream(self, data: bytes) -> bytes:
        """Replace a placeholder byte with its chunk. Never raises: mitmproxy would leave the client waiting."""
        if not data:
            return b""
        chunk, self._chunk = self._chunk, b""
        self._taken.set()
        self._on_sent(self.source.origin, len(chunk))
        self.progress.sent += len(chunk)
        return chunk

    def offer(self, chunk: bytes) -> None:
        """Set the chunk that the next call of `stream` returns."""
        self._chunk = chunk
        self._taken.clear()

    async def wait_taken(self) -> None:
        """Wait until mitmproxy has taken the chunk."""
        before = time.monotonic()
        await self._taken.wait()
        self.progress.client_wait += time.monotonic() - before

    async def read(self, most: int) -> bytes:
        """Return the next bytes of the source; raises as `Source.read` does."""
        before = time.monotonic()
        chunk = await self.source.read(most)
        self.progress.source_wait += time.monotonic() - before
        return chunk

    async def close(self) -> None:
        """Close the source, once, after the task that reads it has ended."""
        if self.closed:
            return
        self.closed = True
        if self.sending is not None:
            self.sending.cancel()
            await asyncio.gather(self.sending, return_exceptions=True)
        await self.source.close()


class BodyListener:
    """An HTTP server on a loopback port. `on_sent` and `on_failure` are those of `BodyDelivery`."""

    def __init__(
        self,
        active: ActiveBodies,
        on_sent: Callable[[str, int], None],
        on_failure: Callable[[HubcacheError], None],
    ) -> None:
        self._active = active
        self._on_sent = on_sent
        self._on_failure = on_failure
        self._registered: dict[str, StreamedBody] = {}
        """Bodies that mitmproxy has not requested yet, by their path."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free loopback port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, and cancel the bodies that are being sent."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for body in self._registered.values():
            await body.close()

    def register(self, source: Source) -> tuple[str, StreamedBody]:
        """Return a one-time path to request from the listener, and the body whose `stream` goes into the flow."""
        path = f"/{secrets.token_urlsafe(16)}"
        body = self._registered[path] = StreamedBody(source, self._on_sent)
        asyncio.get_running_loop().call_later(_PATH_SECONDS, self._expire, path)
        return path, body

    def _expire(self, path: str) -> None:
        """Close a body that mitmproxy has not requested: its client disconnected before."""
        body = self._registered.pop(path, None)
        if body is not None:
            self._start_task(body.close())

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request and close the connection: on a kept connection a disconnected client is hard to notice."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with self._active.counted():
                async with asyncio.timeout(_PATH_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                fields = head.split(b" ", 2)
                body = self._registered.pop(fields[1].decode("latin-1"), None) if len(fields) == 3 else None
                if body is not None and not body.closed:  # else the client disconnected while mitmproxy was connecting
                    await self._send_while_connected(body, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # mitmproxy closed the connection because its client disconnected, or another program connected
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _send_while_connected(
        self, body: StreamedBody, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        sending = body.sending = asyncio.ensure_future(self._send(body, writer))
        disconnected = asyncio.ensure_future(reader.read(1))  # mitmproxy sends no more data: a result means EOF
        try:
            await asyncio.wait((sending, disconnected), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not sending.cancelled():
                sending.result()
        finally:
            disconnected.cancel()
            await asyncio.gather(disconnected, return_exceptions=True)
            await body.close()

    async def _send(self, body: StreamedBody, writer: asyncio.StreamWriter) -> None:
        """Send one body. When it is cut short the last chunk of the coding is not sent, so that the client notices."""
        source = body.source
        writer.write(_HEAD)
        try:
            chunk = await body.read(self._active.chunk_size(CHUNK))
            while not source.finished:
                body.offer(chunk)
                writer.write(_PLACEHOLDER)
                # Read the next chunk while mitmproxy and the client work on this one.
                following = await body.read(self._active.chunk_size(CHUNK))
                await body.wait_taken()
                chunk = following
            # The end goes with the last byte: a client that closes as soon as it has everything must not look like one
            # that disconnected early.
            body.offer(chunk)
            writer.write(_PLACEHOLDER + _END if chunk else _END)
            await body.wait_taken() if chunk else None
        except HubcacheError as error:
            body.failure = error
            self._on_failure(error)
