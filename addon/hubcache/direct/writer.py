"""Writes to the client of a direct connection.

Without TLS the kernel sends bodies from their files to the socket (`sendfile`). With TLS, chunks of bodies are read
into one buffer, and OpenSSL writes them from there to the socket, record by record: they stay in the processor's cache
meanwhile. All else goes through asyncio's transport. Throughput of TLS with the clients of `scripts/bench`, relative to
chunks that are encrypted into memory and sent by the transport, before there was one buffer: 1.2 with one client, 1.1
with eight.
"""

import asyncio
import select
import socket
from collections.abc import Callable

from ..mitm.handover import HandoverState
from ..mitm.tls import TlsConnection, raises_connection_reset
from ..transfer.file_part import FilePart, SendfileUnsupported

_MAX_TURN = 1 << 20
"""Bytes sent to one client in a row: under a millisecond, since all other clients wait meanwhile."""
_MAX_SENDFILE_TURN = 2 << 20
"""The same for bytes that the kernel sends."""
_LARGE = 64 << 10
"""Bytes of a chunk from which on the change to the socket, and back after the body, pays off."""


class DirectWriter:
    """A `BodyWriter` to `transport`, in TLS once that is established. A client that takes no chunk within
    `idle_seconds` is disconnected."""

    chunk_size = 256 << 10
    """Bytes read at a time. MB/s for 8 clients of one process and of two, before there was one buffer: 128 KiB 2,015
    and 1,900, 256 KiB 2,095 and 1,935, 512 KiB 2,060 and 1,915, 1 MiB 2,025 and 1,805."""

    _socket_poll: select.poll
    _has_packets: bool
    """Whether the socket's bytes travel in packets, as those of TCP do."""
    _buffer = memoryview(bytearray(chunk_size))
    """The buffer for chunks of all clients: each chunk is sent, or copied, before the next is read."""

    def __init__(self, transport: asyncio.Transport, state: HandoverState, idle_seconds: float) -> None:
        self._transport = transport
        self._state = state
        self._idle_seconds = idle_seconds
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._socket: socket.socket | None = None
        """The socket that OpenSSL or the kernel writes to, past the transport: a duplicate, since the transport waits
        for its own, and closes it when the client disconnects."""
        self._can_sendfile = True
        self._rest = b""
        """A chunk that OpenSSL has not written completely."""
        self._is_full = False
        """Whether the socket takes no further chunk at present."""

    def pause(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self._may_write.clear()

    def resume(self) -> None:
        """Continue writing: the transport accepts more, or was closed."""
        self._may_write.set()

    @property
    def is_paused(self) -> bool:
        """Whether the transport's buffer is full."""
        return not self._may_write.is_set()

    @property
    def uses_socket(self) -> bool:
        """Whether OpenSSL writes to the socket: received bytes cannot be decrypted before the body has ended."""
        return self._socket is not None and self._state.tls is not None

    async def send(self, answer: bytes) -> None:
        """Send a whole answer, once nearly all of the earlier ones are sent; raises `OSError` as `drain` does."""
        await self.drain()
        self._write_to_transport(answer)

    def write(self, data: bytes) -> None:
        """Send what the socket takes now, and keep the rest; raises `ConnectionResetError` when the client ended TLS or
        disconnected. A head is written first; after the body, however it ended, `release_socket` is to be called."""
        tls = self._state.tls
        if tls is not None and (self.uses_socket or self._attach_socket(tls, data)):
            self._write_to_socket(tls, data)
        else:
            self._write_to_transport(data)

    def write_from(self, part: FilePart, most: int, taken: Callable[[int], None]) -> None:
        """Send bytes of a file, until the socket accepts no more or `_MAX_TURN` bytes are sent.

        `most` is the size of a chunk that is read. `taken` receives the number of bytes of each chunk that was sent or
        is kept. Raises as `write` does.
        """
        tls, sent = self._state.tls, 0
        if tls is None and self._can_sendfile and self._has_idle_socket():
            try:
                self._send_file(part, taken)
                return
            except SendfileUnsupported:
                self._can_sendfile = False
        while sent < _MAX_TURN:
            chunk = self._buffer[:most]
            chunk = chunk[: part.read_into(chunk)]
            if not chunk:
                break
            if tls is not None and (self.uses_socket or self._attach_socket(tls, chunk)):
                self._write_to_socket(tls, chunk)
                self._is_full = not self._socket_poll.poll(0)
            else:
                self._write_to_transport(bytes(chunk))
            taken(len(chunk))
            sent += len(chunk)
            if self._rest or self._is_full or self._transport.get_write_buffer_size() or self._transport.is_closing():
                break

    @raises_connection_reset
    def _write_to_transport(self, data: bytes) -> None:
        tls = self._state.tls
        self._transport.write(data if tls is None else tls.encrypt(data))

    def _has_idle_socket(self) -> bool:
        """Whether the socket can be written to directly, because the transport has nothing to send."""
        if self._transport.get_write_buffer_size() or self._transport.is_closing():
            return False
        try:
            self._socket = self._socket or self._transport.get_extra_info("socket").dup()
        except OSError:  # no descriptor is left
            return False
        return True

    def _send_file(self, part: FilePart, taken: Callable[[int], None]) -> None:
        assert self._socket is not None
        sent = 0
        while sent < _MAX_SENDFILE_TURN:
            try:
                count = part.send_to(self._socket.fileno(), _MAX_SENDFILE_TURN - sent)
            except BlockingIOError:
                self._is_full = True
                break
            if not count:
                break
            taken(count)
            sent += count

    def _attach_socket(self, tls: TlsConnection, data: bytes | memoryview) -> bool:
        """Have OpenSSL write this chunk and the rest of a body to the socket.

        Returns False if the transport still has something to send.
        """
        if len(data) < _LARGE:
            return False
        self._transport.write(tls.pending_ciphertext())  # an alert, if anything
        if not self._has_idle_socket():
            return False
        assert self._socket is not None
        tls.attach_socket(self._socket.fileno())
        self._has_packets = self._socket.family != socket.AF_UNIX
        self._socket_poll = select.poll()
        self._socket_poll.register(self._socket, select.POLLOUT)
        return True

    @raises_connection_reset
    def _write_to_socket(self, tls: TlsConnection, data: bytes | memoryview) -> None:
        """Write a chunk. The kernel sends the records of a chunk together: a client on the same machine would otherwise
        get a packet for each record of 16 KiB, and be woken as often. CPU s/GB for a stored blob with one such client:
        0.70 instead of 0.86."""
        assert self._socket is not None
        if self._has_packets:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        try:
            self._rest = b"" if tls.write_to_socket(data) else bytes(data)
        finally:
            if self._has_packets:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    async def drain(self) -> None:
        """Wait until nearly all is sent; raises `OSError` when the client disconnected or read nothing for too long."""
        if self._rest or self._is_full or self.is_paused:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    await self._wait_until_taken()
            except TimeoutError:
                self._transport.abort()
                raise
        if self._transport.is_closing():
            raise ConnectionResetError("the client disconnected")

    async def _wait_until_taken(self) -> None:
        tls, loop = self._state.tls, asyncio.get_running_loop()
        while (self._rest or self._is_full) and self._socket is not None:
            self._is_full = False
            self._may_write.clear()
            loop.add_writer(self._socket, self._may_write.set)
            try:
                await self._may_write.wait()
            finally:
                loop.remove_writer(self._socket)
            if self._rest and tls is not None:
                self._write_to_socket(tls, self._rest)
        await self._may_write.wait()

    async def end(self) -> None:
        """Wait until all of a body is sent; raises `OSError` as `drain` does."""
        if self._rest:
            await self.drain()

    def close(self) -> None:
        """Close the connection, and drop the unsent rest of a chunk."""
        self.release_socket()
        self._transport.close()

    def release_socket(self) -> None:
        """Write through the transport again; the part of a chunk that OpenSSL has not written is dropped."""
        self._rest, self._is_full = b"", False
        if self._socket is not None:
            if self._state.tls is not None:
                self._state.tls.detach_socket()
            self._socket.close()
            self._socket = None
