"""The connection of an accepted client, with the methods of an asyncio transport.

Clients of registries open a connection for each request. asyncio's own transport registers each socket at the selector
and passes through the event loop three times before the first byte is read and again at the end, which took a third of
the time of a small request. This one reads at once, since most clients have sent their request by then, and registers
the socket only if there is something to wait for.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

_MAX_RECEIVED = 64 << 10
"""Bytes received at a time."""
_HIGH, _LOW = 64 << 10, 16 << 10
"""Unsent bytes above which the protocol is to pause, and below which it may resume; as in asyncio."""


class ClientTransport(asyncio.Transport):
    """The connection of the client at `address`; `client` is its socket, which does not block."""

    def __init__(self, client: socket.socket, address: Any) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._socket = client
        self._address = address
        self._protocol: Any = None
        self._is_paused = False
        """Whether the protocol wants no bytes at present."""
        self._is_watched = False
        """Whether the event loop reports received bytes."""
        self._has_ended = False
        """Whether the client can send nothing more."""
        self._unsent = bytearray()
        self._is_full = False
        """Whether the protocol was asked to pause."""
        self._ends_writing = False
        """Whether the client is to receive nothing after the unsent bytes."""
        self._is_closing = False
        self._is_lost = False
        """Whether the end of the connection is reported to the protocol, or is about to be."""

    def start(self, protocol: asyncio.BaseProtocol) -> None:
        """Connect the protocol, and give it what the client has already sent."""
        self._protocol = protocol
        self._call(protocol.connection_made, self)
        if not (self._is_paused or self._is_closing):
            self._receive()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the `socket`, or its addresses: `peername`, `sockname`; see `asyncio.BaseTransport`."""
        match name:
            case "socket":
                return self._socket
            case "peername":
                return self._address
            case "sockname" if self._socket.fileno() >= 0:
                return self._socket.getsockname()
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol continue the connection."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the present protocol."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def _call[*Arguments](self, method: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Call a method of the protocol, and close the connection if it raises: the client would wait forever."""
        has_returned = False
        try:
            method(*arguments)
            has_returned = True
        finally:
            if not has_returned:
                self.abort()

    # -- receiving ------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_MAX_RECEIVED)
        except (BlockingIOError, InterruptedError):
            self._watch()
            return
        except OSError as error:
            self._break(error)
            return
        if data:
            self._call(self._protocol.data_received, data)
        else:
            self._call(self._end_reading)
        self._watch()

    def _end_reading(self) -> None:
        self._has_ended = True
        self._unwatch()
        if not self._protocol.eof_received():
            self.close()

    def _watch(self) -> None:
        if not (self._is_watched or self._is_paused or self._has_ended or self._is_closing):
            self._is_watched = True
            self._loop.add_reader(self._socket, self._receive)

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._socket)

    def is_reading(self) -> bool:
        """Whether received bytes are given to the protocol."""
        return not (self._is_paused or self._is_closing)

    def pause_reading(self) -> None:
        """Give the protocol no bytes for now."""
        self._is_paused = True
        self._unwatch()

    def resume_reading(self) -> None:
        """Give the protocol bytes again."""
        self._is_paused = False
        self._watch()

    # -- sending --------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send what the socket accepts now, and the rest later; nothing after `close` or `write_eof`."""
        if self._is_closing or self._ends_writing or not data:
            return
        if not self._unsent:
            sent = self._send(data)
            if sent == len(data) or self._is_lost:
                return
            data = memoryview(data)[sent:]
            self._loop.add_writer(self._socket, self._send_rest)
        self._unsent += data
        if len(self._unsent) > _HIGH and not self._is_full:
            self._is_full = True
            self._protocol.pause_writing()

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._break(error)
            return 0

    def _send_rest(self) -> None:
        del self._unsent[: self._send(self._unsent)]
        if self._is_lost:
            return
        if not self._unsent:
            self._loop.remove_writer(self._socket)
        if self._is_full and len(self._unsent) <= _LOW:
            self._is_full = False
            self._protocol.resume_writing()
        if self._unsent or self._is_lost:
            return
        if self._is_closing:
            self._lose(None)
        elif self._ends_writing:
            self._shut_down()

    def get_write_buffer_size(self) -> int:
        """Return the number of unsent bytes."""
        return len(self._unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the numbers of unsent bytes below which the protocol resumes, and above which it pauses."""
        return _LOW, _HIGH

    def can_write_eof(self) -> bool:
        """Whether `write_eof` is possible: always."""
        return True

    def write_eof(self) -> None:
        """Let the client receive the end of the connection after the unsent bytes; it may send more."""
        if self._is_closing or self._ends_writing:
            return
        self._ends_writing = True
        if not self._unsent:
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:  # the client disconnected
            self._break(error)

    # -- the end --------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether the connection is closed, or will be once the unsent bytes are sent."""
        return self._is_closing

    def close(self) -> None:
        """Close the connection once the unsent bytes are sent."""
        if not self._is_closing:
            self._is_closing = True
            self._unwatch()
            if not self._unsent:
                self._lose(None)

    def abort(self) -> None:
        """Close the connection, and drop the unsent bytes."""
        self._break(None)

    def _break(self, error: OSError | None) -> None:
        if self._is_lost:
            return
        self._is_closing = True
        self._unwatch()
        if self._unsent:
            self._unsent.clear()
            self._loop.remove_writer(self._socket)
        self._lose(error)

    def _lose(self, error: OSError | None) -> None:
        """Report the end to the protocol, but not while it calls this transport."""
        if not self._is_lost:
            self._is_lost = True
            self._loop.call_soon(self._end, error)

    def _end(self, error: OSError | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._socket.close()
            self._protocol = None  # it refers to this transport: both would wait for the garbage collector
