"""A pump with sources and clients in the test's hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hubcache.oci.errors import HubcacheError
from hubcache.transfer.pump import Delivery, Pump
from hubcache.transfer.sources import CHUNK, Source


class Pieces(Source):
    """A source that gives these pieces; one that is an exception is raised, one that is an event waited for."""

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
class Station:
    """A running pump and what it reported."""

    sent: list[tuple[str, int]] = field(default_factory=list)
    failed: list[HubcacheError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pump = Pump(lambda origin, count: self.sent.append((origin, count)), self.failed.append)

    async def ask(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.pump.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return reader, writer

    async def receive(self, path: str, delivery: Delivery, pause: Callable[[], float] = float) -> tuple[bytes, bool]:
        """Play mitmproxy: swap each byte of the body by `take`. Returns the body, and whether it ended properly."""
        reader, writer = await self.ask(path)
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
                    body.append(delivery.take(bytes([byte])))
        except asyncio.IncompleteReadError:
            return b"".join(body), False
        finally:
            writer.close()


async def settle(condition: Callable[[], bool]) -> None:
    """Give the pump's tasks up to a second."""
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen within a second")


def station_fixture() -> Any:
    """A fixture for a station whose pump runs."""

    @pytest.fixture
    async def station() -> AsyncIterator[Station]:
        running = Station()
        await running.pump.start()
        yield running
        await running.pump.close()

    return station
