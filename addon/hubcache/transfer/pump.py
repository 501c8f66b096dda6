"""The paced pump: moves bodies through mitmproxy in big chunks with mitmproxy's own back-pressure.

mitmproxy sends an answer set by an addon from memory as a whole, and streams a server's answer 64 KiB at a time at a
fixed cost for each. So the flow is pointed at this loopback listener, which sends *one byte per chunk of body*; the
flow's `stream` callable swaps that byte for the chunk. The next byte is sent only when the previous one was consumed,
which mitmproxy does only when the client's socket took the chunk before. No content crosses the loopback connection,
and a stranger who connects finds nothing without a ticket.

Where there is a straight way to the client, an answer takes that instead, and mitmproxy has no part in it.

The transfer coding between pump and mitmproxy is chunked, since on a growing file the number of chunks is not known.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ..oci.errors import HubcacheError
from .sources import CHUNK, ReadInto, Source

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
_BYTE = b"1\r\nx\r\n"
_END = b"0\r\n\r\n"
_TICKET_SECONDS = 60.0

_CHUNKS = 32 << 20
"""Bytes of all chunks together: one for each body, and as much again where it is encrypted, is in memory."""
_LEAST = 64 << 10
"""Bytes of a chunk, however many bodies there are."""


class Wire(Protocol):
    """The straight way to a client. `write`, `pour` and `drain` raise `OSError` when the client has gone."""

    chunk: int
    """Bytes that are sent best at once."""

    def write(self, data: bytes) -> None:
        """Send what the socket takes now, and keep the rest."""

    def pour(self, take: ReadInto, most: int) -> int:
        """Send what is read in chunks of `most` bytes as long as the socket takes it, but not so long that others wait
        for a millisecond or two; keep the rest of the last chunk. Returns how many bytes were read."""

    async def drain(self) -> None:
        """Wait until the rest is nearly gone."""

    def close(self) -> None:
        """End the connection, when the rest is gone."""


class Delivery:
    """One body on its way to one client: `take` is mitmproxy's `stream` callable."""

    def __init__(self, source: Source, sent: Callable[[str, int], None]) -> None:
        self.source = source
        self._sent = sent
        self._chunk = b""
        self._taken = asyncio.Event()
        self.closed = False
        self.reading: asyncio.Future[None] | None = None
        """What reads the source at present."""

    def take(self, data: bytes) -> bytes:
        """Swap the pump's byte for the chunk it stands for. Never raises: mitmproxy would hang the client."""
        if not data:
            return b""
        chunk, self._chunk = self._chunk, b""
        self._taken.set()
        self._sent(self.source.origin, len(chunk))
        return chunk

    def offer(self, chunk: bytes) -> None:
        """Have a chunk ready for `take`."""
        self._chunk = chunk
        self._taken.clear()

    async def taken(self) -> None:
        """Wait until mitmproxy took the chunk."""
        await self._taken.wait()

    async def close(self) -> None:
        """Close the source, once, and not under its reader."""
        if self.closed:
            return
        self.closed = True
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.gather(self.reading, return_exceptions=True)
        await self.source.close()


class Pump:
    """The listener. `failed` is told what broke a body off."""

    def __init__(self, sent: Callable[[str, int], None], failed: Callable[[HubcacheError], None]) -> None:
        self._sent = sent
        self._failed = failed
        self._waiting: dict[str, Delivery] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free loopback port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and break off what runs."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for delivery in self._waiting.values():
            await delivery.close()

    def admit(self, source: Source) -> tuple[str, Delivery]:
        """A one-time path to request from the listener, and the delivery whose `take` goes into the flow."""
        ticket = f"/{secrets.token_urlsafe(16)}"
        delivery = self._waiting[ticket] = Delivery(source, self._sent)
        asyncio.get_running_loop().call_later(_TICKET_SECONDS, self._expire, ticket)
        return ticket, delivery

    async def whole(self, source: Source) -> bytes | None:
        """All of a small stored body at once; None, and the source as it was, when it cannot be read.

        For what may stay in a recorded flow: it spares a connection, which costs more than such a body.
        """
        try:
            body = await source.read()
        except HubcacheError:
            return None
        await source.close()
        self._sent(source.origin, len(body))
        return body

    async def send(self, head: bytes, source: Source, wire: Wire) -> None:
        """Send an answer the straight way. When its body breaks off the connection ends, and the client notices."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        complete = False
        try:
            wire.write(head)
            while not source.finished:
                await wire.drain()
                self._sent(source.origin, await self._pour(source, wire))
                if not source.finished:  # nothing is waited for after the last chunk: with that the client may leave
                    await asyncio.sleep(0)  # one that takes whatever it is sent would have the loop for itself
            complete = True
        except HubcacheError as error:
            self._failed(error)
        except OSError:
            pass  # the client left
        finally:
            self._connections.discard(task)
            if not complete:
                wire.close()
            await source.close()

    async def _pour(self, source: Source, wire: Wire) -> int:
        """Send the next bytes of a source; returns how many."""
        take = await source.file_reader()
        if take is not None:
            return wire.pour(take, self._size(wire.chunk))
        chunk = await source.read(self._size(wire.chunk))
        wire.write(chunk)
        return len(chunk)

    def _expire(self, ticket: str) -> None:
        """mitmproxy never came for it: the client left in between."""
        delivery = self._waiting.pop(ticket, None)
        if delivery is not None:
            self._spawn(delivery.close())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one body, then close: with a kept connection a client that left would be hard to notice."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            async with asyncio.timeout(_TICKET_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            fields = head.split(b" ", 2)
            delivery = self._waiting.pop(fields[1].decode("latin-1"), None) if len(fields) == 3 else None
            if delivery is not None and not delivery.closed:  # else its client left while mitmproxy was connecting
                await self._send_while_wanted(delivery, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # mitmproxy closed its side because the client left, or a stranger connected
        finally:
            self._connections.discard(task)
            writer.close()

    async def _send_while_wanted(
        self, delivery: Delivery, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        body = delivery.reading = asyncio.ensure_future(self._send(delivery, writer))
        gone = asyncio.ensure_future(reader.read(1))  # mitmproxy sends nothing more: a result means that it closed
        try:
            await asyncio.wait((body, gone), return_when=asyncio.FIRST_COMPLETED)
            if body.done() and not body.cancelled():
                body.result()
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            await delivery.close()

    def _size(self, most: int) -> int:
        """Bytes of the next chunk of a body."""
        share = _CHUNKS // max(1, len(self._connections))
        return min(most, max(_LEAST, 1 << share.bit_length() - 1))

    async def _send(self, delivery: Delivery, writer: asyncio.StreamWriter) -> None:
        """Send one body. When it breaks off, the chunked coding is left without its end, and the client notices."""
        source = delivery.source
        writer.write(_HEAD)
        try:
            chunk = await source.read(self._size(CHUNK))
            while not source.finished:
                delivery.offer(chunk)
                writer.write(_BYTE)
                # Read the next while mitmproxy and the client work on this one.
                following = await source.read(self._size(CHUNK))
                await delivery.taken()
                chunk = following
            # The end goes with the last byte: a client that closes as soon as it has all would else look like a leaver.
            delivery.offer(chunk)
            writer.write(_BYTE + _END if chunk else _END)
            await delivery.taken() if chunk else None
        except HubcacheError as error:
            self._failed(error)
