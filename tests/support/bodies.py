"""Sources of bodies that a test controls, and a running body listener with a client for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hubcache.oci.errors import HubcacheError
from hubcache.transfer.active_bodies import ActiveBodies
from hubcache.transfer.body_listener import BodyListener, StreamedBody
from hubcache.transfer.sources import CHUNK, Source


class Pieces(Source):
    """A source that returns these pieces in order. It raises a piece that is an exception and waits for one that is an
    event."""

    origin = "store"

    def __init__(self, *pieces: bytes | Exception | asyncio.Event | None) -> None:
        self._pieces = list(pieces)
        self.reads = 0
        self.closed = 0

    async def read(self, most: int = CHUNK) -> bytes:
        self.reads += 1
        while self._pieces:
            piece = self._pieces.pop(0)
            if isinstance(piece, Exception):
                self._pieces.insert(0, piece)
                raise piece
            if isinstance(piece, asyncio.Event):
                await piece.wait()
                continue
            return piece
        return b""

    @property
    def finished(self) -> bool:
        return not self._pieces

    async def close(self) -> None:
        self.closed += 1


@dataclass
class Reports:
    """What a delivery or a listener reported: bytes sent, by source, and errors."""

    sent: list[tuple[str, int]] = field(default_factory=list)
    failed: list[HubcacheError] = field(default_factory=list)

    def on_sent(self, origin: str, count: int) -> None:
        self.sent.append((origin, count))


@dataclass
class ListenerHarness(Reports):
    """A body listener, what it reported, and requests to it."""

    def __post_init__(self) -> None:
        self.listener = BodyListener(ActiveBodies(), self.on_sent, self.failed.append)

    async def request(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return reader, writer

    async def receive(
        self, path: str, streamed: StreamedBody, pause: Callable[[], float] = float
    ) -> tuple[bytes, bool]:
        """Fetch a body as mitmproxy does: replace each placeholder byte by calling `stream`. Return the body, and
        whether it was complete."""
        reader, writer = await self.request(path)
        body: list[bytes] = []
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Transfer-Encoding: chunked" in head
            while True:
                size = int(await reader.readuntil(b"\r\n"), 16)
                data = (await reader.readexactly(size + 2))[:-2]
                if size == 0:
                    return b"".join(body), True
                for byte in data:
                    await asyncio.sleep(pause())
                    body.append(streamed.stream(bytes([byte])))
        except asyncio.IncompleteReadError:
            return b"".join(body), False
        finally:
            writer.close()


async def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until another task has made the condition true; raises `TimeoutError` after 30 seconds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


def listener_fixture() -> Any:
    """A fixture that starts and closes a listener."""

    @pytest.fixture
    async def harness() -> AsyncIterator[ListenerHarness]:
        running = ListenerHarness()
        await running.listener.start()
        yield running
        await running.listener.close()

    return harness
