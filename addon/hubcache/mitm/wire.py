"""The straight way to a client: an answer with a body from a `Source` is written to its connection past mitmproxy.

To pass a chunk on from the pump costs mitmproxy about as much as to read, encrypt and send it, and the pump needs a
connection for each body (one client of 400 MB over TLS, by `scripts/bench`: 875 MB/s by the pump, 1,289 straight). So
mitmproxy only waits, in the hook before it would send the answer, while that is sent here. That is possible where the
bytes of an answer are what goes into the client's one TLS connection, or its socket, and nobody else wants to see or
change the answer; else it goes through mitmproxy, by the pump.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from weakref import WeakKeyDictionary

from mitmproxy import http, tls
from mitmproxy.connection import Client
from mitmproxy.net.http import http1
from mitmproxy.options import Options
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.proxy.server import ConnectionHandler

from ..serve.messages import SMALL, Answer
from ..transfer.pump import Pump, Wire
from ..transfer.sources import CHUNK, Source, Take
from . import flow_headers
from .http1_server import Delivered
from .tls import Connection, translated

HOOKS = ("request", "responseheaders", "response")
"""Where another addon listens, answers do not go straight."""


def permitted(options: Options, is_heard: Callable[[str], bool]) -> bool:
    """Whether nobody else has to do with answers; `is_heard` tells of a hook whether another addon listens."""
    return not options.modify_headers and not any(map(is_heard, HOOKS))


async def take_small(answer: Answer, pump: Pump) -> None:
    """Have a small stored body in memory, so that it goes with its head."""
    if answer.source is not None and answer.source.origin == "store" and 0 < answer.length <= SMALL:
        body = await pump.whole(answer.source)
        if body is not None:
            answer.body, answer.source = body, None


class Wires:
    """The TLS connections that are known, and the bodies that are about to go straight."""

    def __init__(self) -> None:
        self._connections: WeakKeyDictionary[Client, Connection] = WeakKeyDictionary()
        self._bodies: dict[str, tuple[Source, Wire]] = {}

    def secured(self, start: tls.TlsData) -> None:
        """TLS with a client begins. One inside of another (the proxy is spoken to by TLS, too) is mitmproxy's."""
        layers = [layer for layer in start.context.layers if isinstance(layer, ClientTLSLayer)]
        if len(layers) == 1 and isinstance(start.ssl_conn, Connection):
            self.know(start.context.client, start.ssl_conn)

    def know(self, client: Client, connection: Connection) -> None:
        """A client's one TLS connection."""
        self._connections[client] = connection

    def take(
        self, flow: http.HTTPFlow, answer: Answer, handlers: Mapping[tuple[str, ...] | str, ConnectionHandler]
    ) -> bool:
        """Answer a flow of one of these connections, to be sent by `deliver`; false where only mitmproxy can do it."""
        client = flow.client_conn
        connection = self._connections.get(client)
        handler = handlers.get(client.id)
        if handler is None or answer.source is None or flow.request.is_http2 or (client.tls and connection is None):
            return False
        transport = handler.transports.get(client)
        writer = transport.writer if transport is not None else None
        if not isinstance(writer, asyncio.StreamWriter):
            return False
        flow.response = flow_headers.response(answer, Delivered)
        flow.response.content = None
        self._bodies[flow.id] = answer.source, _Wire(flow, writer, connection, handler.timeout_watchdog.timeout)
        return True

    def deliver(self, flow: http.HTTPFlow, pump: Pump) -> Awaitable[None] | None:
        """Send the answer that was taken for a flow."""
        source, wire = self._bodies.pop(flow.id, (None, None))
        return None if source is None or wire is None else self._deliver(flow, pump, source, wire)

    @staticmethod
    async def _deliver(flow: http.HTTPFlow, pump: Pump, source: Source, wire: Wire) -> None:
        assert flow.response is not None
        await pump.send(http1.assemble_response_head(flow.response), source, wire)
        flow.response.timestamp_end = time.time()

    async def drop(self, flow: http.HTTPFlow) -> None:
        """The client of a flow left before its answer was sent."""
        source, _ = self._bodies.pop(flow.id, (None, None))
        if source is not None:
            await source.close()


class _Wire:
    """Writes to the client of a flow, within TLS where there is a `connection`; waits `patience` seconds for it."""

    chunk = CHUNK

    def __init__(
        self, flow: http.HTTPFlow, writer: asyncio.StreamWriter, connection: Connection | None, patience: float
    ) -> None:
        self._flow = flow
        self._writer = writer
        self._connection = connection
        self._patience = patience

    @translated
    def write(self, data: bytes | memoryview) -> None:
        self._writer.write(data if self._connection is None else self._connection.encrypt(data))

    def pour(self, take: Take, most: int) -> int:
        chunk = bytearray(most)  # asyncio keeps what the socket does not take
        count = take(memoryview(chunk))
        self.write(memoryview(chunk)[:count])
        return count

    async def drain(self) -> None:
        if self._flow.error is not None:
            raise ConnectionAbortedError("the flow was killed")
        if self._writer.transport.is_closing() or self._writer.transport.get_write_buffer_size():
            async with asyncio.timeout(self._patience):
                await self._writer.drain()

    def close(self) -> None:
        self._writer.close()
