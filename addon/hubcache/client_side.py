"""The client's side of a connection: mitmproxy's HTTP/1 server with bounded memory and errors as JSON.

mitmproxy reads a request head of any length, keeps the whole body of a request that is answered here, and tells errors
as HTML. Registry clients parse JSON, and a proxy that many machines reach must not be made to hold what they send.
"""

from collections.abc import Iterator

from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers import HttpLayer
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    HttpEvent,
    RequestData,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server

from .oci.errors import HeadersTooLarge, NameInvalid, RegistryError, Unavailable

MAX_HEAD = 64 << 10
"""Bytes of request line and headers; the limit of nginx is 32 KiB, of Go 1 MiB. Tokens of big accounts reach 10 KiB."""


class Delivered(http.Response):
    """An answer that the client has got, head and body, by the time that mitmproxy would send it."""


class RegistryHttp1Server(Http1Server):
    """Speaks HTTP/1 with one client."""

    _head = b""

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if len(self.buf) > MAX_HEAD and b"\r\n\r\n" not in bytes(self.buf)[:MAX_HEAD]:
            yield commands.SendData(self.conn, _render(HeadersTooLarge(f"request head exceeds {MAX_HEAD} bytes")))
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        for command in super().read_headers(event):
            if isinstance(command, commands.SendData):  # its only direct answer: HTML that tells a malformed head
                command = commands.SendData(self.conn, _render(NameInvalid("malformed HTTP request")))
            yield command

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """As mitmproxy's; nobody gets to see a body that nobody wants."""
        for command in super().read_body(event):
            if not (isinstance(command, ReceiveHttp) and isinstance(command.event, RequestData) and self._is_unwanted):
                yield command

    @property
    def _is_unwanted(self) -> bool:
        return self.request is not None and self.request.raw_content is not None

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """As mitmproxy's, but what it would tell as HTML is told as JSON, the head of an answer from memory goes out
        with its body, which follows at once (in one TLS record and one packet), and what was delivered is not sent."""
        if isinstance(event, ResponseProtocolError) and not self.response:
            if not self.conn.state & ConnectionState.CAN_WRITE:  # answered and closed, or gone
                return
            status = event.code.http_status_code()
            if status is not None:
                error: RegistryError = (
                    NameInvalid(event.message)
                    if status < 500
                    else Unavailable("upstream cannot be reached", event.message)
                )
                yield commands.SendData(self.conn, _render(error))
            yield commands.CloseConnection(self.conn)
            return
        for command in super().send(event):
            if isinstance(command, commands.SendData):
                if isinstance(event, ResponseHeaders) and isinstance(event.response, Delivered):
                    continue
                if isinstance(event, ResponseHeaders) and event.response.raw_content:
                    self._head = command.data
                    continue
                command.data, self._head = self._head + command.data, b""
            yield command


def drop_body(request: http.Request) -> None:
    """Have the body of a request, which is just being received, be nothing."""
    request.raw_content = b""  # None until it is all there


def install(first: layer.Layer) -> None:
    """Give the HTTP layer at or below `first` (as `next_layer` sees it, before its start) our server."""
    for below in _chain(first):
        if isinstance(below, HttpLayer) and below.context.client not in below.connections:
            below.connections[below.context.client] = RegistryHttp1Server(below.context.fork())


def _chain(first: layer.Layer) -> Iterator[layer.Layer]:
    below: layer.Layer | None = first
    while below is not None:
        yield below
        below = getattr(below, "child_layer", None)


def _render(error: RegistryError) -> bytes:
    headers = {"Content-Type": "application/json", "Connection": "close"} | error.headers()
    return bytes(http1.assemble_response(http.Response.make(error.status, error.body(), headers)))
