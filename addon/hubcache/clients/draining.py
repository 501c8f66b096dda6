"""Clients at the time of an orderly stop: who is being served is served to the end, everybody else is left at once.

A kept connection without a request is closed (RFC 9112 section 9.6 permits that at any time, and clients of registries
ask again on another); an answer that begins later tells `Connection: close`.
"""

import asyncio
import time
from collections.abc import Mapping
from enum import Enum
from typing import Protocol

from mitmproxy.connection import Client as Peer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import HttpLayer
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.server import ConnectionHandler

QUIET_SECONDS = 2.0
"""A tunnel in which nothing was said for so long is not in use; a client that came and says nothing asks nothing."""


class Standing(Enum):
    """What a client's connection is good for at present."""

    IDLE = "nothing is being said"
    NEW = "it was opened a moment ago, and a request may be on its way"
    SERVED = "a request is being answered, or not all of the answer is sent, or a tunnel is in use"


class Client(Protocol):
    """One client's connection."""

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""

    @property
    def standing(self) -> Standing:
        """What the connection is good for."""

    def leave(self) -> None:
        """Close the connection, once what was said is sent."""

    def cut(self) -> None:
        """End the connection at once."""


class ClientGroup:
    """Connections of this process's own. Once the stop has begun they `are_leaving`, and `new` tells how many of them
    may still ask something."""

    def __init__(self) -> None:
        self.clients: set[Client] = set()
        self.are_leaving = False
        self.new = 0

    def leave(self) -> int:
        """Leave whoever is not being served; returns how many are."""
        self.are_leaving = True
        self.clients = {client for client in self.clients if not client.is_gone}
        standings = {client: client.standing for client in self.clients}
        for client, standing in standings.items():
            if standing is Standing.IDLE:
                client.leave()
        found = list(standings.values())
        self.new = found.count(Standing.NEW)
        return found.count(Standing.SERVED)

    def cut(self) -> None:
        """End all connections."""
        for client in list(self.clients):
            client.cut()


class Handled:
    """A client with whom mitmproxy speaks."""

    def __init__(self, handler: ConnectionHandler, transport: asyncio.WriteTransport) -> None:
        self._handler = handler
        self._transport = transport

    @property
    def is_gone(self) -> bool:
        return self._transport.is_closing() and not self._transport.get_write_buffer_size()

    @property
    def standing(self) -> Standing:
        if self._transport.get_write_buffer_size():
            return Standing.SERVED
        is_quiet = time.time() - self._handler.timeout_watchdog.last_activity >= QUIET_SECONDS
        return _standing(self._handler.layer.context, is_quiet=is_quiet)

    def leave(self) -> None:
        self._transport.close()

    def cut(self) -> None:
        self._transport.abort()


class HandledClients(ClientGroup):
    """Those of mitmproxy's `handlers`, which change all the time."""

    def __init__(self, handlers: Mapping[tuple[str, ...] | str, ConnectionHandler]) -> None:
        super().__init__()
        self._handlers = handlers
        self._known: set[Peer] = set()

    def leave(self) -> int:
        """As for others; those that came meanwhile are looked at, too."""
        for handler in list(self._handlers.values()):
            io = handler.transports.get(handler.client)
            writer = io.writer if io is not None else None
            if handler.client not in self._known and isinstance(writer, asyncio.StreamWriter):
                self._known.add(handler.client)
                self.clients.add(Handled(handler, writer.transport))
        return super().leave()


def _standing(at: Context, *, is_quiet: bool, outside: HttpLayer | None = None) -> Standing:
    """Of a connection, or of a tunnel `outside` of which that HTTP is spoken.

    Of what mitmproxy does not look into it can only be told whether bytes pass.
    """
    http = next((each for each in reversed(at.layers) if isinstance(each, HttpLayer)), None)
    if http is None or http is outside:
        in_use = Standing.NEW if http is None else Standing.SERVED
        return Standing.IDLE if is_quiet else in_use
    for stream in http.streams.values():
        if stream.child_layer is not None:  # it is a tunnel
            return _standing(stream.context, is_quiet=is_quiet, outside=http)
        return Standing.SERVED
    server = http.connections.get(at.client)
    has_answered = isinstance(server, Http1Server) and server.stream_id > 1
    return Standing.IDLE if has_answered or is_quiet else Standing.NEW
