"""Hands a direct connection over to mitmproxy: after a CONNECT, inside of TLS, or with a request that is received."""

import asyncio
import time
from dataclasses import dataclass
from typing import cast

from mitmproxy.connection import Client, TlsVersion
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.proxy.tunnel import TunnelState

from ..serve.messages import Forward
from .streams import Server, stream_handler
from .tls import TlsConnection
from .tunnel import Inside, http_layer

# All names here were read in mitmproxy 12.3.1. Without them direct connections, which may have to be handed over at any
# time, are not possible.

_PLACEHOLDER = b"\x16"
"""A byte that mitmproxy reads in place of `HandoverState.received`, which is decrypted already. What the client sends
next is encrypted, and must not be decoded together with that."""


@dataclass(slots=True)
class HandoverState:
    """The state of a connection that is being handed over to mitmproxy."""

    address: tuple[str, int] | None = None
    """Host and port of the CONNECT that was accepted, if there was one."""
    tls: TlsConnection | None = None
    """TLS inside of the tunnel, or at a mirror, once the client's hello was received."""
    is_secure: bool = False
    """Whether the TLS handshake is complete."""
    received: bytes = b""
    """Decrypted bytes to be read next."""
    decision: Forward | None = None
    """The decision about the next request, if it was made."""


class _Successor(asyncio.StreamReaderProtocol):
    """The protocol from which mitmproxy reads after the handover."""

    state: HandoverState | None = None


def hand_over(
    transport: asyncio.Transport, server: Server, state: HandoverState, received: bytes
) -> asyncio.StreamReaderProtocol:
    """Have mitmproxy's `server` continue with the bytes `received`; returns the transport's new protocol."""
    if state.is_secure:
        state.received, received = received, _PLACEHOLDER
    successor = _Successor(asyncio.StreamReader(), stream_handler(server))
    successor.state = state
    transport.set_protocol(successor)
    successor.connection_made(transport)
    transport.resume_reading()
    successor.data_received(received)
    return successor


def take_state(client: Client, handler: ConnectionHandler | None) -> HandoverState | None:
    """Return and remove the state of a client that was handed over; None for any other client."""
    transport = handler.transports.get(client) if handler is not None else None
    writer = transport.writer if transport is not None else None
    protocol = writer.transport.get_protocol() if isinstance(writer, asyncio.StreamWriter) else None
    if not isinstance(protocol, _Successor):
        return None
    state, protocol.state = protocol.state, None
    return state


def first_layer(at: context.Context, state: HandoverState) -> layer.Layer | None:
    """Return mitmproxy's first layer for a client that was handed over; None where no CONNECT or TLS came before."""
    if state.address is not None:
        at.server.address = state.address
    elif not state.is_secure:
        return None
    if state.is_secure and state.tls is not None:
        return _Secured(at, state.tls, state.received)
    return Inside(at)


class _Secured(layer.Layer):
    """Has mitmproxy's TLS layer continue an established TLS connection."""

    def __init__(self, at: context.Context, connection: TlsConnection, received: bytes) -> None:
        super().__init__(at)
        self._received = received
        self._tls = ClientTLSLayer(at)
        self._tls.child_layer = http_layer(at)
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
