"""Limits for the connections to a node's port for peers, which anyone in its network can open."""

import asyncio
from typing import cast

from aiohttp import web

HEAD_SECONDS = 10.0
"""A connection on which no request with the secret has arrived after this time is closed."""

MAX_WAITING = 250
"""Connections without such a request; a further one closes the oldest, since a peer sends its request at once."""

MAX_CONNECTIONS = 1000
"""All connections; a further one is refused, and the peer goes on with its other sources."""


class PeerConnections:
    """The connections of a server. An instance is the factory of protocols for `loop.create_server`."""

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self._waiting: dict[web.RequestHandler, asyncio.TimerHandle] = {}
        """The connections without an authenticated request, the oldest first, and their timers."""

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        if len(self._server.connections) >= MAX_CONNECTIONS:
            return _Refused()
        if len(self._waiting) >= MAX_WAITING:
            self._abort(next(iter(self._waiting)))
        handler = self._server()
        self._waiting[handler] = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._abort, handler)
        return handler

    def authenticated(self, handler: web.RequestHandler) -> None:
        """Record that a request with the secret has arrived: the connection stays open."""
        self._stop_timer(handler)

    def close(self) -> None:
        """Cancel all timers; the connections are closed by their server."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def _abort(self, handler: web.RequestHandler) -> None:
        """Close a connection, whether the peer accepts what was sent or not."""
        self._stop_timer(handler)
        if handler.transport is not None:
            handler.transport.abort()

    def _stop_timer(self, handler: web.RequestHandler) -> None:
        timer = self._waiting.pop(handler, None)
        if timer is not None:
            timer.cancel()


class _Refused(asyncio.Protocol):
    """A connection beyond the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()
