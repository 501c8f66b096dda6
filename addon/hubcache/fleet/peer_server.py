"""Serves blobs to the other nodes of the fleet, reports releases of leases to them, and receives their events.

Requests carry the secret of the fleet. A blob that is being filled is served from its growing file, like a client's.
Private content is never served: this node cannot check what the others' clients may read.
"""

import asyncio
import hmac
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import NoReturn, Protocol, Self

from aiohttp import web

from ..oci.digest import Digest
from ..oci.errors import HubcacheError, RangeInvalid, StorageError
from ..oci.json_reader import read_json
from ..oci.reference import parse_range
from ..store.store import Store
from ..transfer.fills import Fills
from ..transfer.sources import CHUNK, FileSource, Source
from .fill_reading import follow_fill
from .peer_client import LONGEST_WAIT_SECONDS
from .peer_connections import PeerConnections

MAX_EVENT = 64 << 10
"""Bytes of an event."""

_SHUTDOWN_SECONDS = 1.0
"""How long the end of the server waits for responses in progress."""
_KEPT_SECONDS = 30.0
"""An unused connection is closed after this time; peers keep theirs for 15 seconds."""
_EVENT_SECONDS = 10.0
"""Longest time in which the body of an event arrives."""
_BACKLOG = 128
_IDLE_SECONDS = 60.0
"""A peer that accepts no bytes for this time is disconnected."""

LEADER_SECONDS = 2.0
"""How long another node waits for the beginning of a blob that this one fetches for it. A registry that takes longer
makes no difference to it: then it waits for this node's lease."""

_MAX_FOLLOWERS = 50
"""Bodies that are sent at the same time to nodes that could read from the bucket instead. It keeps a large fleet from
reading a new image from one node alone."""

_MAX_WAITING = 250
"""Requests that wait for leases at the same time. Each takes a connection, of which there are at most
`peer_connections.MAX_CONNECTIONS`."""

type OnEvent = Callable[[Mapping[str, object]], Awaitable[None]]
"""Gets the fields of an event."""


class Leases(Protocol):
    """The leases that this node holds."""

    async def wait_released(self, name: str) -> bool:
        """Wait until this node has released a lease; returns False when it does not hold it."""


class Blobs(Protocol):
    """The blobs of the fleet, as this node fetches them."""

    def is_asking_leader(self, digest: Digest) -> bool:
        """Whether a fill waits for another node's answer itself."""

    async def begin(self, host: str, repository: str, digest: Digest) -> None:
        """Begin to store a blob if the store has a manifest of the repository with it, and every client may read it.

        Raises `HubcacheError`.
        """


class PeerServer:
    """An HTTP server for the other nodes. Until `secret` is known, it refuses all requests."""

    def __init__(self, store: Store, fills: Fills, blobs: Blobs, leases: Leases, on_event: OnEvent) -> None:
        self.secret: str | None = None
        self._store = store
        self._fills = fills
        self._blobs = blobs
        self._leases = leases
        self._on_event = on_event
        self._waiting = 0
        """Requests that wait for the release of a lease."""
        self._followers = 0
        """Bodies that are sent as the leader, see `Leaders`."""
        app = web.Application(middlewares=[self._authenticate], client_max_size=MAX_EVENT)
        app.router.add_get("/blob/{digest}", self._serve_blob, allow_head=False)
        app.router.add_get("/lease/{name:.+}", self._wait_released, allow_head=False)
        app.router.add_post("/event", self._receive_event)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_SECONDS,
            handler_cancellation=True,
            keepalive_timeout=_KEPT_SECONDS,
        )
        self._connections: PeerConnections | None = None
        self._listening: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve on a listening socket."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._connections = PeerConnections(server)
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._connections, sock=listener, backlog=_BACKLOG)

    async def close(self) -> None:
        """Stop listening and close all connections."""
        if self._listening is not None:
            self._listening.close()
        if self._connections is not None:
            self._connections.close()
        await self._runner.cleanup()

    @web.middleware
    async def _authenticate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if self.secret is None or not hmac.compare_digest(given, f"Bearer {self.secret}".encode()):
            refused = web.Response(status=401)
            refused.force_close()
            return refused
        if self._connections is not None:
            self._connections.authenticated(request.protocol)
        return await handler(request)

    async def _receive_event(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_EVENT_SECONDS):
                body = await request.read()
        except TimeoutError:
            return web.Response(status=408)
        try:
            fields = read_json(body, MAX_EVENT)
        except ValueError:
            return web.Response(status=400)
        if not isinstance(fields, dict):
            return web.Response(status=400)
        await self._on_event(fields)
        return web.Response(status=204)

    async def _wait_released(self, request: web.Request) -> web.Response:
        """Respond when a lease has been released, or with 404 when this node does not hold it."""
        if self._waiting >= _MAX_WAITING:
            return web.Response(status=404)
        self._waiting += 1
        try:
            async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                is_released = await self._leases.wait_released(request.match_info["name"])
        except TimeoutError:
            is_released = False
        finally:
            self._waiting -= 1
        return web.Response(status=204 if is_released else 404)

    # -- blobs ------------------------------------------------------------------------------------------------------

    async def _serve_blob(self, request: web.Request) -> web.StreamResponse:
        async with AsyncExitStack() as stack:
            try:
                digest = Digest.parse(request.match_info["digest"])
                if "repository" in request.query:
                    part = await self._find_as_leader(stack, digest, request)
                else:
                    part = await self._find(digest, request.headers.get("Range"))
            except RangeInvalid as error:
                return web.Response(status=416, headers=error.headers())
            except HubcacheError:  # the fill failed, or the file cannot be read
                part = None
            if part is None:
                return web.Response(status=404)
            stack.push_async_callback(part.source.close)
            if self._store.private.has(digest):  # it became private while it was opened
                return web.Response(status=404)
            response = web.StreamResponse(status=206 if part.is_range else 200, headers=part.headers())
            try:
                await response.prepare(request)
                await _send(part.source, response)
            except ConnectionResetError:  # the peer has disconnected, and this task is not cancelled yet
                pass
            except HubcacheError:  # the peer notices that the body is cut short
                if request.transport is not None:
                    request.transport.close()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
            return response

    async def _find_as_leader(self, stack: AsyncExitStack, digest: Digest, request: web.Request) -> "_Part | None":
        """As `_find`, but begin to fetch a blob that is missing; None also when this takes long.

        A fill that waits for another node's answer itself is not waited for: that node could wait for this one.
        """
        if self._followers >= _MAX_FOLLOWERS or self._blobs.is_asking_leader(digest):
            return None
        self._followers += 1
        stack.callback(self._end_following)
        if self._store.is_open and not self._store.has(digest):
            await self._blobs.begin(request.query.get("registry", ""), request.query["repository"], digest)
        try:
            return await self._find(digest, request.headers.get("Range"), LEADER_SECONDS)
        except TimeoutError:
            return None

    def _end_following(self) -> None:
        self._followers -= 1

    async def _find(self, digest: Digest, range_header: str | None, patience: float | None = None) -> "_Part | None":
        """Return the bytes of a blob that is stored or being filled; None where it is neither, or is private.

        Raises `TimeoutError` when a fill has received nothing after `patience` seconds.
        """
        if not self._store.is_open or self._store.private.has(digest):
            return None
        fill = self._fills.get(digest)
        if fill is not None:
            async with asyncio.timeout(patience):
                size = await fill.wait_opened()
            part = _Part.select(range_header, size)
            source = await follow_fill(self._store, fill, part.start, part.end, _raise_unreadable)
            if source is None:
                return None
            part.source = source
            return part
        stored = await self._store.open_blob(digest)
        if stored is None:
            return None
        with ExitStack() as stack:
            stack.callback(stored.close)
            part = _Part.select(range_header, stored.size)
            part.source = FileSource(stored, part.start, part.end)
            stack.pop_all()
        return part


@dataclass(slots=True)
class _Part:
    """Bytes `start` to before `end` of a blob of `size` bytes."""

    start: int
    end: int
    size: int
    source: Source = field(init=False)

    @classmethod
    def select(cls, range_header: str | None, size: int) -> Self:
        """Return the requested part; raises `RangeInvalid`."""
        part = parse_range(range_header, size)
        return cls(0, size, size) if part is None else cls(part.start, part.end, size)

    @property
    def is_range(self) -> bool:
        """Whether this is not the whole blob."""
        return (self.start, self.end) != (0, self.size)

    def headers(self) -> dict[str, str]:
        """Return the headers of the response."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(self.end - self.start)}
        if self.is_range:
            headers["Content-Range"] = f"bytes {self.start}-{self.end - 1}/{self.size}"
        return headers


def _raise_unreadable(start: int, end: int) -> NoReturn:
    """Cut the body short: a peer has other sources when this node's disk fails."""
    raise StorageError(f"cannot read bytes {start} to {end} of a fill")


async def _send(source: Source, response: web.StreamResponse) -> None:
    """Send a body; raises `HubcacheError` when it cannot be read, `TimeoutError` when the peer accepts nothing."""
    while not source.finished:
        part = await source.file_part()
        chunk: bytes | memoryview
        if part is None:
            chunk = await source.read()
        else:
            buffer = bytearray(CHUNK)  # a new one each time: the transport keeps what the socket does not accept yet
            chunk = memoryview(buffer)[: part.read_into(memoryview(buffer))]
        async with asyncio.timeout(_IDLE_SECONDS):
            await response.write(chunk)
        await asyncio.sleep(0)  # a write to a peer that is fast enough does not suspend: clients would have to wait
    await response.write_eof()
