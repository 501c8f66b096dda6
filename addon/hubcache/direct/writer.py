"""What is sent to a client that is received without mitmproxy.

Chunks of bodies are read into one buffer, and written by OpenSSL from there to the socket itself, record by record:
all that is in the processor's cache meanwhile.
All else goes through asyncio's transport. Measured with the clients of `scripts/bench`, as a part of chunks that are
encrypted into memory and sent by the transport, before there was one buffer: 1.2 with one client, 1.1 with eight.
"""

import asyncio
import select
import socket

from ..mitm.handover import HandoverState
from ..mitm.tls import Connection, translated
from ..transfer.sources import ReadInto

_TURN = 1 << 20
"""Bytes that a client is sent in a row: under a millisecond, or all others would feel it."""
_LARGE = 64 << 10
"""Bytes of a chunk that are worth the change to the socket, and back when its body has ended."""


class DirectWriter:
    """A `BodyWriter` to a client, in TLS once that is established. The client is left where it does not take a chunk
    within `patience` seconds."""

    chunk_size = 256 << 10
    """Measured as MB/s for 8 clients of one process and of two, before there was one buffer: 128 KiB 2,015 and 1,900,
    256 KiB 2,095 and 1,935, 512 KiB 2,060 and 1,915, 1 MiB 2,025 and 1,805."""

    _room: select.poll
    _buffer = memoryview(bytearray(chunk_size))
    """For the chunks of all clients: each is sent, or copied, before the next is read."""

    def __init__(self, transport: asyncio.Transport, said: HandoverState, patience: float) -> None:
        self._transport = transport
        self._said = said
        self._patience = patience
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._socket: socket.socket | None = None
        """Where OpenSSL writes to; asyncio waits for the socket of a transport only on behalf of that, so a copy."""
        self._rest = b""
        """The chunk of which OpenSSL has not written all."""
        self._is_full = False
        """Whether the socket takes no whole chunk at present."""

    def pause(self) -> None:
        """The transport holds too much."""
        self._may_write.clear()

    def resume(self) -> None:
        """The transport takes more, or has ended."""
        self._may_write.set()

    @property
    def is_paused(self) -> bool:
        """Whether the transport holds too much."""
        return not self._may_write.is_set()

    @property
    def is_straight(self) -> bool:
        """Whether OpenSSL writes to the socket: then nothing that comes can be decrypted before the body has ended."""
        return self._socket is not None

    async def send(self, answer: bytes) -> None:
        """Send a whole answer, once the client has taken those before; raises `OSError` as `drain` does."""
        await self.drain()
        self._hand(answer)

    def write(self, data: bytes) -> None:
        """Send what the socket takes now, and keep the rest; raises `ConnectionResetError` when the client ended TLS,
        or left. First comes a head; after the body, however it ended, `leave` is to be called."""
        tls = self._said.connection
        if tls is not None and (self.is_straight or self._goes_straight(tls, data)):
            self._put(tls, data)
        else:
            self._hand(data)

    def write_from(self, read_into: ReadInto, most: int) -> int:
        """See `BodyWriter`; raises as `write` does."""
        tls, poured = self._said.connection, 0
        while poured < _TURN:
            chunk = self._buffer[:most]
            chunk = chunk[: read_into(chunk)]
            if not chunk:
                break
            poured += len(chunk)
            if tls is not None and (self.is_straight or self._goes_straight(tls, chunk)):
                self._put(tls, chunk)
                self._is_full = not self._room.poll(0)
            else:
                self._hand(bytes(chunk))
            if self._rest or self._is_full or self._transport.get_write_buffer_size() or self._transport.is_closing():
                break
        return poured

    @translated
    def _hand(self, data: bytes) -> None:
        tls = self._said.connection
        self._transport.write(data if tls is None else tls.encrypt(data))

    def _goes_straight(self, tls: Connection, data: bytes | memoryview) -> bool:
        """Whether this and the rest of a body can go to the socket: only where the transport has nothing to send."""
        if len(data) < _LARGE:
            return False
        self._transport.write(tls.waiting())  # an alert, if anything
        if self._transport.get_write_buffer_size() or self._transport.is_closing():
            return False
        try:
            self._socket = self._transport.get_extra_info("socket").dup()
        except OSError:  # no descriptor is left
            return False
        tls.attach(self._socket.fileno())
        self._room = select.poll()
        self._room.register(self._socket, select.POLLOUT)
        return True

    @translated
    def _put(self, tls: Connection, data: bytes | memoryview) -> None:
        self._rest = b"" if tls.put(data) else bytes(data)

    async def drain(self) -> None:
        """Wait until the client took nearly all; raises `OSError` when it left or stands still."""
        if self._rest or self._is_full or self.is_paused:
            try:
                async with asyncio.timeout(self._patience):
                    await self._taken()
            except TimeoutError:
                self._transport.abort()
                raise
        if self._transport.is_closing():
            raise ConnectionResetError("the client left")

    async def _taken(self) -> None:
        tls, loop = self._said.connection, asyncio.get_running_loop()
        while (self._rest or self._is_full) and self._socket is not None and tls is not None:
            self._is_full = False
            self._may_write.clear()
            loop.add_writer(self._socket, self._may_write.set)
            try:
                await self._may_write.wait()
            finally:
                loop.remove_writer(self._socket)
            if self._rest:
                self._put(tls, self._rest)
        await self._may_write.wait()

    async def end(self) -> None:
        """Wait until all of a body is sent; raises `OSError` as `drain` does."""
        if self._rest:
            await self.drain()

    def close(self) -> None:
        """End the connection, without what is left of a chunk."""
        self.leave()
        self._transport.close()

    def leave(self) -> None:
        """Go on by the transport; what OpenSSL has not written of a chunk is dropped."""
        self._rest, self._is_full = b"", False
        if self._socket is not None and self._said.connection is not None:
            self._said.connection.detach()
            self._socket.close()
            self._socket = None
