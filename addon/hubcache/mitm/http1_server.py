"""mitmproxy's HTTP/1 server towards a client, with bounded memory and errors as JSON.

mitmproxy reads a request head of any length, keeps the whole body of a request that is answered here, and sends errors
as HTML. Clients of registries parse JSON, and a proxy that many machines reach must not buffer everything that they
send. It also accepts heads that parsers read in different ways, and hangs at trailers.
"""

import re
from collections.abc import Iterator

from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import HttpLayer
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    HttpEvent,
    RequestData,
    RequestEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server

from ..oci.errors import HeadersTooLarge, NameInvalid, RegistryError, Unavailable

# All names here were read in mitmproxy 12.3.1. Without them its own server is used, and the bounds above do not hold.

MAX_HEAD = 64 << 10
"""Bytes of request line and headers; the limit of nginx is 32 KiB, of Go 1 MiB. Tokens of big accounts reach 10 KiB."""
_MAX_EMPTY = 16
"""Bytes of empty lines before a request: old clients sent one after a body (RFC 9112 section 2.2)."""
_MAX_LOGGED = 200
"""Characters of a client's request in a log line."""

_HEAD_END = re.compile(rb"\n\r?\n")
"""What mitmproxy takes for the end of a head."""
_AMBIGUITIES = (
    (re.compile(rb"\n[ \t]"), "a header is folded (RFC 9112 section 5.2)"),
    (re.compile(rb"(?<!\r)\n|\r(?!\n)"), "CR and LF end lines together only (RFC 9112 section 2.2)"),
    (re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]"), "a control character in the head (RFC 9110 section 5.5)"),
    (re.compile(rb"\nhost:[^\0]*\nhost:", re.IGNORECASE), "two Host headers (RFC 9112 section 3.2)"),
    (
        re.compile(rb"\n(?:accept|authorization|host|if-none-match|if-range|range):[^\n]*[\x80-\xff]", re.IGNORECASE),
        "a header that is passed on is not ASCII",
    ),
)
"""What no client of registries sends, and other parsers read differently or refuse. `User-Agent` and most other headers
are never passed on by the cache's own client, and may be UTF-8."""


def find_ambiguity(head: bytes) -> str | None:
    """Return why other parsers may read a head that mitmproxy accepts in a different way; None if they may not.

    The head reaches from its first line to the empty one.
    """
    return next((reason for pattern, reason in _AMBIGUITIES if pattern.search(head)), None)


class RegistryHttp1Server(Http1Server):
    """The HTTP/1 server for one client; with `is_proxy`, each request must name its host."""

    _head = b""
    """The head of an answer whose body is in memory and follows at once."""
    _skipped = 0
    """Bytes of empty lines before the next request."""

    def __init__(self, context: Context, *, is_proxy: bool = False) -> None:
        super().__init__(context)
        self._is_proxy = is_proxy

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Read a head as mitmproxy does, after checks of it; a malformed one is answered with JSON."""
        self._skip_empty_lines()
        refusal = self._refusal()
        if refusal is not None:
            yield from self._refuse(refusal)
            return
        for command in super().read_headers(event):
            if isinstance(command, commands.SendData):  # its only direct answer: HTML about a malformed head
                command = commands.SendData(self.conn, _error_response(NameInvalid("malformed HTTP request")))
            elif isinstance(command, commands.Log) and len(command.message) > _MAX_LOGGED:
                command = commands.Log(f"{command.message[:_MAX_LOGGED]}…", command.level)
            yield command

    def _skip_empty_lines(self) -> None:
        """Drop empty lines: mitmproxy treats one as a complete head, and waits for more."""
        while self._skipped < _MAX_EMPTY and bytes(self.buf)[:2] == b"\r\n":
            self.buf.maybe_extract_at_most(2)
            self._skipped += 2

    def _refusal(self) -> RegistryError | None:
        """Return why the received head is refused; None if it is acceptable or not complete."""
        begin = bytes(self.buf)[:MAX_HEAD]
        if begin[:1] in (b"\n", b"\r") and begin != b"\r":
            return NameInvalid("malformed HTTP request: empty lines before it")
        end = _HEAD_END.search(begin)
        if end is None:
            return HeadersTooLarge(f"request head exceeds {MAX_HEAD} bytes") if len(self.buf) > MAX_HEAD else None
        reason = find_ambiguity(begin[: end.end()])
        if reason is not None:
            return NameInvalid(f"malformed HTTP request: {reason}")
        self._skipped = 0
        target = begin.split(maxsplit=2)[1:2]
        if self._is_proxy and target and target[0].startswith((b"/", b"*")):
            return NameInvalid("this is a proxy: it takes CONNECT, and requests that name a host in their first line")
        return None

    def _refuse(self, error: RegistryError) -> layer.CommandGenerator[None]:
        yield commands.SendData(self.conn, _error_response(error))
        yield commands.CloseConnection(self.conn)
        self.state = self.done

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Read a body as mitmproxy does, but discard unwanted bodies and trailers.

        mitmproxy does not support trailers, and RFC 9112 section 7.1.2 permits discarding them.
        """
        try:
            for command in super().read_body(event):
                is_data = isinstance(command, ReceiveHttp) and isinstance(command.event, RequestData)
                if not (is_data and self._is_unwanted):
                    yield command
        except NotImplementedError:
            yield ReceiveHttp(RequestEndOfMessage(self.stream_id))
            yield from self.mark_done(request=True)
        if self.state == self.read_body and len(self.buf) > MAX_HEAD:  # body data is taken out of the buffer at once
            yield from self._refuse(HeadersTooLarge(f"trailers exceed {MAX_HEAD} bytes"))

    @property
    def _is_unwanted(self) -> bool:
        return self.request is not None and self.request.raw_content is not None

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Send as mitmproxy does, but errors as JSON, and the head of an answer from memory together with its body.

        The body follows at once, so that both are in one TLS record and one packet.
        """
        if isinstance(event, ResponseProtocolError) and not self.response:
            yield from self._send_error(event)
            return
        for command in super().send(event):
            if isinstance(command, commands.SendData):
                if isinstance(event, ResponseHeaders) and event.response.raw_content:
                    self._head = command.data
                    continue
                command.data, self._head = self._head + command.data, b""
            yield command

    def _send_error(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        if not self.conn.state & ConnectionState.CAN_WRITE:  # answered and closed, or the client disconnected
            return
        status = event.code.http_status_code()
        if status is not None:
            error: RegistryError = (
                NameInvalid(event.message) if status < 500 else Unavailable("upstream cannot be reached", event.message)
            )
            yield commands.SendData(self.conn, _error_response(error))
        yield commands.CloseConnection(self.conn)


def install(first: layer.Layer) -> None:
    """Replace the server of the HTTP layer that is `first` or below it.

    Call it in `next_layer`, before the layer starts.
    """
    for below in chain(first):
        if isinstance(below, HttpLayer) and below.context.client not in below.connections:
            below.connections[below.context.client] = RegistryHttp1Server(
                below.context.fork(), is_proxy=below.mode is not HTTPMode.transparent
            )


def chain(first: layer.Layer | None) -> Iterator[layer.Layer]:
    """Yield a layer and those below it."""
    below = first
    while below is not None:
        yield below
        below = getattr(below, "child_layer", None)


def _error_response(error: RegistryError) -> bytes:
    headers = {"Content-Type": "application/json", "Connection": "close"} | error.headers()
    return bytes(http1.assemble_response(http.Response.make(error.status, error.body(), headers)))
