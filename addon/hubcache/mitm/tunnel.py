"""Answers a CONNECT to a registry, and begins HTTP at a mirror, without a flow of mitmproxy.

mitmproxy makes a flow of each CONNECT, calls four hooks for it and for what follows, and passes the contents of the
tunnel on as bodies of HTTP messages, while clients of registries open a tunnel for each request.
"""

import re

from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, HttpLayer
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.mode_specs import ReverseMode

from . import http1_server
from .interception import Interception

# All names here were read in mitmproxy 12.3.1. Without them each CONNECT is a flow, which takes twice the time.

ANSWER = b"HTTP/1.1 200 Connection established\r\n\r\n"
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(
    rb"CONNECT ([0-9A-Za-z.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5}) HTTP/1\.[01]\r\n"
    rb"(?:(?!(?i:content-length|transfer-encoding):)" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n"
)
"""The head of an ordinary CONNECT (RFC 9112 section 2.1, without a body)."""
_HOST = re.compile(rb"\nhost:", re.IGNORECASE)
_MAX_HEAD = 16 << 10


class Connects:
    """Recognizes CONNECTs to the hosts of `interception`."""

    def __init__(self, interception: Interception) -> None:
        self._interception = interception

    def parse(self, data: bytes) -> tuple[tuple[str, int], int] | None:
        """Return the address in an ordinary CONNECT to a registry, and the length of its head in bytes; None for
        everything else."""
        found = _HEAD.match(data[:_MAX_HEAD])
        if found is None or len(_HOST.findall(found[0])) > 1:
            return None
        host, port = found[1].decode().strip("[]"), int(found[2])
        return ((host, port), found.end()) if self._interception.has(host, port) else None

    def first_layer(self, question: layer.NextLayer) -> layer.Layer | None:
        """Return the layer for a new connection to a listener of a registry; None where mitmproxy is to choose it."""
        at, data = question.context, question.data_client()
        if len(at.layers) != 1 or not data:
            return None
        if isinstance(at.client.proxy_mode, ReverseMode):
            return None if starts_like_tls_record(data) else http_layer(at)
        found = self.parse(data)
        return None if found is None else Tunnel(at, *found)


class Tunnel(layer.Layer):
    """Answers a CONNECT to `address`, whose head has `length` bytes, and continues with the contents of the tunnel."""

    def __init__(self, at: context.Context, address: tuple[str, int], length: int) -> None:
        super().__init__(at)
        self._address = address
        self._length = length
        self._received = b""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Receive the head, which may arrive in pieces, and answer it."""
        if isinstance(event, events.DataReceived):
            self._received += event.data
            if len(self._received) < self._length:
                return
            self.context.server.address = self._address
            inside = Inside(self.context)
            self._handle_event = inside.handle_event  # type: ignore[method-assign]
            yield commands.SendData(self.context.client, ANSWER)
            received = self._received[self._length :]
            if received:
                yield from inside.handle_event(events.DataReceived(self.context.client, received))


class Inside(layer.Layer):
    """Chooses the layer for a tunnel's contents by their first bytes."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)
        elif isinstance(event, events.DataReceived):
            child = self._child(event.data)
            self._handle_event = child.handle_event  # type: ignore[method-assign]
            yield from child.handle_event(events.Start())
            yield from child.handle_event(event)

    def _child(self, data: bytes) -> layer.Layer:
        if not starts_like_tls_record(data):
            return layer.NextLayer(self.context)
        child = ClientTLSLayer(self.context)
        child.child_layer = http_layer(self.context)
        return child


def http_layer(at: context.Context) -> HttpLayer:
    """Return HTTP with this client. There is no layer for TLS with the server: mitmproxy makes one on demand."""
    at.server.tls = True  # so that requests have the scheme `https`
    made = HttpLayer(at, HTTPMode.transparent)
    http1_server.install(made)
    return made
