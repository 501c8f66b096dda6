"""What speaks with a client of our doors, set up at once: a CONNECT to a registry is answered here, with TLS and HTTP
inside; at a mirror it is HTTP.

mitmproxy makes a flow of each CONNECT, asks its addons four times about it and about what comes next, and passes what
goes through the tunnel on as bodies of HTTP messages, while clients open a tunnel for each request. All is left to
mitmproxy as soon as another addon listens, or an option says something about it.
"""

import re
from collections.abc import Callable

from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.options import Options
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, HttpLayer
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.mode_specs import RegularMode, ReverseMode

from . import http1_server
from .interception import Interception

ANSWER = b"HTTP/1.1 200 Connection established\r\n\r\n"
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(
    rb"CONNECT ([0-9A-Za-z.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5}) HTTP/1\.[01]\r\n"
    rb"(?:(?!(?i:content-length|transfer-encoding):)" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n"
)
"""The head of a CONNECT about which there is nothing to say (RFC 9112 section 2.1, without a body)."""
_HOST = re.compile(rb"\nhost:", re.IGNORECASE)
_MAX_HEAD = 16 << 10


class Connects:
    """Answers CONNECTs to the hosts of `interception`, while `options` and the addons leave it to us."""

    def __init__(self, interception: Interception, options: Options) -> None:
        self._interception = interception
        self.permitted = (
            options.connection_strategy == "lazy"
            and options.allow_hosts == interception.allow_hosts
            and not (options.http2 or options.ignore_hosts or options.tcp_hosts or options.proxyauth)
        )

    def answer(self, asked: layer.NextLayer, is_heard: Callable[[str], bool]) -> layer.Layer | None:
        """The layer for a new connection to one of our doors; None for whatever is not ordinary.

        `is_heard` tells of a hook whether some addon that is not known here has a function for it.
        """
        at, data = asked.context, asked.data_client()
        if not self.permitted or len(at.layers) != 1 or not data or is_heard("next_layer"):
            return None
        mode = at.client.proxy_mode
        if isinstance(mode, ReverseMode):
            is_ours = mode.scheme == "https" and self._interception.serves(mode)
            return http(at) if is_ours and not starts_like_tls_record(data) else None
        if not isinstance(mode, RegularMode) or is_heard("http_connect") or is_heard("http_connected"):
            return None
        found = self.find(data)
        return None if found is None else Tunnel(at, *found)

    def find(self, data: bytes) -> tuple[tuple[str, int], int] | None:
        """The address that an ordinary CONNECT to one of our hosts names, and the length of its head."""
        found = _HEAD.match(data[:_MAX_HEAD])
        if found is None or len(_HOST.findall(found[0])) > 1:
            return None
        host, port = found[1].decode().strip("[]"), int(found[2])
        return ((host, port), found.end()) if self._interception.has(host, port) else None


class Tunnel(layer.Layer):
    """Answers the CONNECT, whose head is as long as told, then goes on with what is inside of the tunnel."""

    def __init__(self, at: context.Context, address: tuple[str, int], length: int) -> None:
        super().__init__(at)
        self._address = address
        self._length = length
        self._received = b""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """The CONNECT itself; it may have come in pieces."""
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
    """Waits for the first bytes inside of a tunnel, which tell what is to go on there."""

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
        child.child_layer = http(self.context)
        return child


def http(at: context.Context) -> HttpLayer:
    """HTTP with this client. No layer for TLS with the server: where there is none, mitmproxy makes it on demand."""
    at.server.tls = True  # what makes the requests `https` ones
    made = HttpLayer(at, HTTPMode.transparent)
    http1_server.install(made)
    return made
