"""A client of a direct connection, to which a `DirectWriter` writes through a real socket."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hubcache.direct.writer import DirectWriter
from hubcache.mitm.handover import HandoverState
from OpenSSL import SSL

from support.mitm import taddons
from support.standin import random_bytes
from support.tls_pair import arrived, established

CHUNKS = [random_bytes(size, f"{size}") for size in (300_000, 1, 262_144, 1_000_000)]
"""More than the sockets take at once."""
HEAD = b"head"


class Protocol(asyncio.Protocol):
    """The transport's side of a `DirectWriter`."""

    writer: DirectWriter
    received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.writer.pause()

    def resume_writing(self) -> None:
        self.writer.resume()

    def connection_lost(self, _: Exception | None) -> None:
        self.writer.resume()


@dataclass
class Client:
    """A client that reads when the test calls it; `writer` writes to it, by `transport`."""

    socket: socket.socket
    tls: SSL.Connection | None
    transport: asyncio.Transport
    protocol: Protocol
    state: HandoverState

    @property
    def writer(self) -> DirectWriter:
        return self.protocol.writer

    async def read(self, count: int) -> bytes:
        """Return the next bytes that were sent."""
        content = b""
        while len(content) < count:
            data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            assert data, f"ended after {len(content)} of {count} bytes"
            content += arrived(self.tls, [data]) if self.tls else data
        return content


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two sockets that are connected by TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        return theirs, listener.accept()[0]


@asynccontextmanager
async def client(
    known: taddons.context | None,
    version: int = SSL.TLS1_3_VERSION,
    patience: float = 60,
    connect: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair,
) -> AsyncIterator[Client]:
    """A client that speaks TLS; without `known`, one that does not."""
    theirs, own = connect()
    with theirs:
        theirs.setblocking(False)
        own.setblocking(False)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
        protocol = Protocol()
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, own)
        tls, made = established(known, version) if known else (None, None)
        state = HandoverState(tls=made, is_secure=known is not None)
        assert isinstance(transport, asyncio.Transport)
        protocol.writer = DirectWriter(transport, state, patience)
        try:
            yield Client(theirs, tls, transport, protocol, state)
        finally:
            transport.abort()
            await asyncio.sleep(0)


@contextlib.contextmanager
def no_descriptor_left_open() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before
