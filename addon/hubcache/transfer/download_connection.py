"""A connection on which a thread downloads: requests and responses of HTTP/1.1 with blocking calls.

`http.client` reads into one buffer that is used again and again. For the same bytes, asyncio's streams take more
processor time, and take it on the event loop, for which clients wait.
"""

import contextlib
import http.client
import io
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import cast

from .tls_socket import TlsSocket

BUFFER = 512 << 10
"""Bytes of the buffer into which bodies are read. CPU s/GB of three downloads at a time, hashed and written: 256 KiB
1.66, 512 KiB 1.60; 1 MiB, also received at once, 1.58."""

_MAX_DISCARDED = 64 << 10
"""Bytes of a body that is read only to use its connection again."""
_MAX_INTERIM = 20
"""Interim responses that may precede a response."""
_READ_AHEAD = 4 << 10
"""Bytes that may be read with the head of a response; larger reads go directly into the buffer of the caller."""
_has_break = re.compile("[\r\n\0]").search
"""Characters with which a value would begin another field or request (RFC 9110 section 5.5)."""


class DownloadConnection:
    """A connected socket, with TLS once `secure` was called. `abort` may be called by any thread at any time, all other
    methods by one thread at a time.

    Methods raise `OSError` (time-outs and TLS included) and `http.client.HTTPException`.
    """

    def __init__(self, sock: socket.socket, progress_seconds: float) -> None:
        """`progress_seconds` is the longest wait for the next bytes, in a handshake, too."""
        self._tcp = sock
        self._socket: socket.socket | TlsSocket = sock
        self._stream = _Stream(sock)
        self.idle_since = 0.0
        """When the connection was last used, by the clock of the event loop."""
        sock.settimeout(progress_seconds)

    # -- set-up -----------------------------------------------------------------------------------------------------

    def secure(self, tls: ssl.SSLContext, server_name: str, seconds: float) -> None:
        """Begin TLS, also inside of TLS. The handshake may take `seconds`."""
        usual = self._tcp.gettimeout()
        self._tcp.settimeout(seconds)
        secured = TlsSocket(self._socket, tls, server_name)
        secured.do_handshake()
        self._socket = secured
        self._tcp.settimeout(usual)
        self._stream = _Stream(self._socket)

    def connect(self, authority: str, headers: dict[str, str]) -> int:
        """Send a CONNECT to an outbound proxy, and return the status of its response."""
        response = self.send("CONNECT", authority, {"Host": authority} | headers)
        return response.status

    # -- requests ---------------------------------------------------------------------------------------------------

    def send(self, method: str, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send a request without a body, and return the response once its head has arrived.

        Raises `http.client.HTTPException` also for a head that contains CR, LF or NUL: nothing is sent then.
        """
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if any(map(_has_break, lines)):
            raise http.client.HTTPException("a line break in the head of a request")
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        for _ in range(_MAX_INTERIM + 1):
            response = http.client.HTTPResponse(cast(socket.socket, self._stream), method=method)
            with contextlib.ExitStack() as stack:
                stack.callback(response.close)
                response.begin()
                if response.status >= 200:  # else an interim response (RFC 9110 section 15.2), such as 103
                    stack.pop_all()
                    return response
        raise http.client.HTTPException("too many interim responses")

    def discard(self, response: http.client.HTTPResponse) -> bytes:
        """Return the first bytes of the body of a redirect or an error, as all of it is usually sent at once; no bytes
        if the transfer breaks off or stalls, since the head is sufficient."""
        try:
            return response.read(_MAX_DISCARDED)
        except (OSError, http.client.HTTPException):
            self.abort()  # the connection must not be used again
            return b""

    def receive(self, response: http.client.HTTPResponse, consume: Callable[[memoryview], bool]) -> bool:
        """Pass the body to `consume` as it arrives, until that returns False; returns whether the body has ended."""
        buffer = memoryview(bytearray(BUFFER))
        while True:
            if response.chunked:
                data = response.read1(len(buffer))
                count = len(data)
                buffer[:count] = data
            else:
                count = response.readinto(buffer)
            if not count:
                return True
            if not consume(buffer[:count]):
                return False

    # -- reuse and end ----------------------------------------------------------------------------------------------

    def end(self, response: http.client.HTTPResponse) -> bool:
        """End a response; returns whether the connection can be used for another request: the body has ended, and
        nothing follows it."""
        has_ended = response.isclosed()
        response.close()
        return has_ended and not response.will_close and self.is_quiet

    @property
    def is_quiet(self) -> bool:
        """Whether the server has sent nothing unrequested, and has not closed the connection."""
        try:
            return not self._stream.has_data
        except OSError:
            return False

    def abort(self) -> None:
        """Have a running call of another thread fail at once."""
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self.abort()
        self._tcp.close()


class _Stream(io.BufferedReader):
    """The received bytes of a connection. `http.client` closes it after each response, which does nothing here."""

    def __init__(self, sock: socket.socket | TlsSocket) -> None:
        self._source = _Socket(sock)
        super().__init__(self._source, _READ_AHEAD)
        self._sock = sock

    def makefile(self, *_: object) -> "_Stream":
        """Return itself: to `http.client`, it is the socket as well."""
        return self

    def readinto(self, buffer: object) -> int:
        """Read what has arrived, at least one byte unless the stream has ended.

        The inherited method waits until the buffer is full: readers of a slow download would wait as well.
        """
        view = memoryview(cast(bytearray, buffer))
        if not view:
            return 0
        if self._source.was_read:
            ahead = len(self.peek(1))
            count = super().readinto1(view[:ahead])  # with a larger view it would also wait for more
            self._source.was_read = count < ahead
        else:
            count = self._sock.recv_into(view)
        if 0 < count < len(view) // 4:  # for the rest of a larger piece, these calls cost more than they save
            # Without `poll`: each call would hand the interpreter to another thread.
            with self._not_waiting(), contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                while count < len(view) and (more := self._sock.recv_into(view[count:])):
                    count += more
        return count

    @property
    def has_data(self) -> bool:
        """Whether bytes, or the end, have arrived and were not read."""
        with self._not_waiting():
            try:
                self.peek(1)
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            return True  # no bytes: this is the end, also where the server ends TLS and leaves TCP open

    @contextlib.contextmanager
    def _not_waiting(self) -> Iterator[None]:
        """Have reads fail that would have to wait."""
        timeout = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            yield
        finally:
            self._sock.settimeout(timeout)

    def flush(self) -> None:
        """Do nothing, also after the connection was closed."""

    def close(self) -> None:
        """Do nothing: the connection may be used again."""


class _Socket(io.RawIOBase):
    """A socket as a raw stream."""

    def __init__(self, sock: socket.socket | TlsSocket) -> None:
        self._sock = sock
        self.was_read = False
        """Whether bytes were read that may still be in the stream's own buffer."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        self.was_read = True
        return self._sock.recv_into(cast(bytearray, buffer))
