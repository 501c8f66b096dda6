"""The straight way to a client: most of a body is written to its connection past mitmproxy's layers.

A chunk takes mitmproxy 200 us from the pump to the socket, more than to read, encrypt and send 256 KiB. So it passes on
the first chunk, with the head, and the last one, and so knows of the beginning and the end; what is between them is
written here. That is possible where the bytes of a body are what goes into the client's one TLS connection, or its
socket; everything else goes through mitmproxy.
"""

import asyncio
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from mitmproxy import http, tls
from mitmproxy.connection import Client
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.proxy.server import ConnectionHandler, TimeoutWatchdog
from OpenSSL import SSL

from .handshake import Connection
from .transfer.pump import Wire


class Wires:
    """The TLS connections that are known, and the straight ways through them."""

    def __init__(self) -> None:
        self._connections: WeakKeyDictionary[Client, Connection] = WeakKeyDictionary()

    def secured(self, start: tls.TlsData) -> None:
        """TLS with a client begins. One inside of another (the proxy is spoken to by TLS, too) is mitmproxy's."""
        layers = [layer for layer in start.context.layers if isinstance(layer, ClientTLSLayer)]
        if len(layers) == 1 and isinstance(start.ssl_conn, Connection):
            self._connections[start.context.client] = start.ssl_conn

    def to(self, flow: http.HTTPFlow, handlers: Mapping[tuple[str, ...] | str, ConnectionHandler]) -> Wire | None:
        """The way to the client of a flow, of those that mitmproxy handles; None where only mitmproxy has one."""
        client = flow.client_conn
        connection = self._connections.get(client)
        handler = handlers.get(client.id)
        if handler is None or flow.request.is_http2 or (client.tls and connection is None):
            return None
        transport = handler.transports.get(client)
        writer = transport.writer if transport is not None else None
        if not isinstance(writer, asyncio.StreamWriter):
            return None
        return _Wire(writer, connection, handler.timeout_watchdog)


class _Wire:
    """Writes to one client, within TLS where there is a `connection`."""

    def __init__(self, writer: asyncio.StreamWriter, connection: Connection | None, watchdog: TimeoutWatchdog) -> None:
        self._writer = writer
        self._connection = connection
        self._watchdog = watchdog

    def write(self, data: bytes) -> None:
        self._watchdog.register_activity()
        try:
            self._writer.write(data if self._connection is None else self._connection.encrypt(data))
        except SSL.Error as error:
            raise ConnectionResetError("the client ended TLS") from error

    async def drain(self) -> None:
        await self._writer.drain()
