"""The connections of clients that mitmproxy handles, and whether an orderly stop finds them idle, new or busy."""

import asyncio
import time
from collections.abc import Mapping

from mitmproxy.connection import Client
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import HttpLayer
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.server import ConnectionHandler

from ..clients.draining import QUIET_SECONDS, ClientGroup, ClientState

# All names here were read in mitmproxy 12.3.1. Without them a stop cannot tell idle connections from busy ones.


class HandledClient:
    """A client that mitmproxy's `handler` serves on `transport`."""

    def __init__(self, handler: ConnectionHandler, transport: asyncio.WriteTransport) -> None:
        self._handler = handler
        self._transport = transport

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closing() and not self._transport.get_write_buffer_size()

    @property
    def state(self) -> ClientState:
        if self._transport.get_write_buffer_size():
            return ClientState.BUSY
        is_quiet = time.time() - self._handler.timeout_watchdog.last_activity >= QUIET_SECONDS
        return _state(self._handler.layer.context, is_quiet=is_quiet)

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


class HandledClients(ClientGroup):
    """The clients in `handlers`, mitmproxy's own table of open connections."""

    def __init__(self, handlers: Mapping[tuple[str, ...] | str, ConnectionHandler]) -> None:
        super().__init__()
        self._handlers = handlers
        self._known: set[Client] = set()

    def close_idle(self) -> int:
        """Close idle connections, and return the number of busy ones; clients that connected meanwhile are included."""
        for handler in list(self._handlers.values()):
            io = handler.transports.get(handler.client)
            writer = io.writer if io is not None else None
            if handler.client not in self._known and isinstance(writer, asyncio.StreamWriter):
                self._known.add(handler.client)
                self.clients.add(HandledClient(handler, writer.transport))
        return super().close_idle()


def _state(context: Context, *, is_quiet: bool, outer: HttpLayer | None = None) -> ClientState:
    """Return the state of a connection, or of a tunnel that the HTTP layer `outer` carries.

    Where mitmproxy does not decode the traffic, only the passage of bytes shows whether the connection is in use.
    """
    http = next((each for each in reversed(context.layers) if isinstance(each, HttpLayer)), None)
    if http is None or http is outer:
        in_use = ClientState.NEW if http is None else ClientState.BUSY
        return ClientState.IDLE if is_quiet else in_use
    for stream in http.streams.values():
        if stream.child_layer is not None:  # a tunnel
            return _state(stream.context, is_quiet=is_quiet, outer=http)
        return ClientState.BUSY
    server = http.connections.get(context.client)
    has_answered = isinstance(server, Http1Server) and server.stream_id > 1
    return ClientState.IDLE if has_answered or is_quiet else ClientState.NEW
