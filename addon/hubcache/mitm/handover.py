"""How mitmproxy goes on with a client with whom something was said before: a CONNECT, TLS, the begin of a request."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, cast

from mitmproxy.connection import Client, TlsVersion
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.proxy.tunnel import TunnelState

from ..serve.messages import Forward
from .tls import Connection
from .tunnel import Inside, http

_PLACEHOLDER = b"\x16"
"""What mitmproxy reads where `Said.received` belongs: what comes next is encrypted, and must not be read with that."""


@dataclass(slots=True)
class HandoverState:
    """What was said with a client so far, and what is decided about the request that comes next."""

    address: tuple[str, int] | None = None
    """Of the CONNECT that was accepted, if there was one."""
    connection: Connection | None = None
    """TLS inside of it, if that has begun."""
    is_secure: bool = False
    """Whether the handshake is complete."""
    received: bytes = b""
    """What came inside of TLS and is to be read next."""
    decision: Forward | None = None


class _Successor(asyncio.StreamReaderProtocol):
    """What mitmproxy reads from."""

    said: HandoverState | None = None


def hand_over(
    transport: asyncio.Transport, server: ServerInstance[Any], said: HandoverState, received: bytes
) -> asyncio.StreamReaderProtocol:
    """Have `server` go on with what was `received`; returns what hears of the transport from now on."""
    if said.is_secure:
        said.received, received = received, _PLACEHOLDER
    successor = _Successor(asyncio.StreamReader(), server.handle_stream)
    successor.said = said
    transport.set_protocol(successor)
    successor.connection_made(transport)
    transport.resume_reading()
    successor.data_received(received)
    return successor


def said_before(client: Client, handler: ConnectionHandler | None) -> HandoverState | None:
    """What was said with a client that was handed over; None for any other, and when this is asked again."""
    transport = handler.transports.get(client) if handler is not None else None
    writer = transport.writer if transport is not None else None
    protocol = writer.transport.get_protocol() if isinstance(writer, asyncio.StreamWriter) else None
    if not isinstance(protocol, _Successor):
        return None
    said, protocol.said = protocol.said, None
    return said


def going_on(at: context.Context, said: HandoverState) -> layer.Layer | None:
    """mitmproxy's first layer for such a client; None where nothing was said yet."""
    if said.address is None:
        return None
    at.server.address = said.address
    if said.is_secure and said.connection is not None:
        return _Secured(at, said.connection, said.received)
    return Inside(at)


class _Secured(layer.Layer):
    """Has mitmproxy's layer for TLS go on with a connection that is established."""

    def __init__(self, at: context.Context, connection: Connection, received: bytes) -> None:
        super().__init__(at)
        self._received = received
        self._tls = ClientTLSLayer(at)
        self._tls.child_layer = http(at)
        self._tls.tls = connection
        self._tls.client_hello_parsed = True
        self._tls.tunnel_state = TunnelState.OPEN
        client = at.client
        assert at.server.address is not None
        client.sni = at.server.address[0]
        client.alpn = connection.get_alpn_proto_negotiated()
        client.cipher = connection.get_cipher_name()
        client.tls_version = cast(TlsVersion, connection.get_protocol_version_name())
        client.timestamp_tls_setup = time.time()

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            yield from self._tls.event_to_child(event)
            return
        self._handle_event = self._tls.handle_event  # type: ignore[method-assign]
        yield from self._tls.event_to_child(events.DataReceived(event.connection, self._received))
        encrypted = event.data[len(_PLACEHOLDER) :]
        if encrypted:
            yield from self._tls.handle_event(events.DataReceived(event.connection, encrypted))
