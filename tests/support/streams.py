"""Reads sources to their end, and a fake upstream for them."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
from hubcache.transfer.blob_body import BlobBody
from hubcache.transfer.sources import CHUNK, Source

DATA = bytes(range(256)) * 8192  # 2 MiB


async def drain(source: Source) -> bytes:
    """Return the rest of a source, read in chunks."""
    parts = []
    while not source.finished:
        parts.append(await source.read())
        assert len(parts[-1]) <= CHUNK
    return b"".join(parts)


async def pour(source: Source) -> bytes:
    """Return the rest of a source, read into a buffer as far as it is in a file."""
    content, buffer = b"", memoryview(bytearray(100_000))
    while not source.finished:
        part = await source.file_part()
        if part is None:
            return content + await drain(source)
        content += buffer[: part.read_into(buffer)]
    return content


async def send(source: Source) -> bytes:
    """Return the rest of a source, sent to a socket by the kernel as far as it is in a file."""
    content = b""
    server_socket, client_socket = socket.socketpair()
    with server_socket, client_socket:
        server_socket.setblocking(False)
        while not source.finished:
            part = await source.file_part()
            if part is None:
                return content + await drain(source)
            count = part.send_to(server_socket.fileno(), 50_000)
            content += client_socket.recv(count, socket.MSG_WAITALL) if count else b""
    return content


EACH_READER = pytest.mark.parametrize("reader", [drain, pour, send])
type Reader = Callable[[Source], Awaitable[bytes]]


class Body:
    """A fake blob body: `data` from `start` on, in pieces, and then `error` if given."""

    def __init__(self, data: bytes, start: int, piece: int, error: Exception | None = None) -> None:
        self.start = start
        self.size = len(data)
        self.answered_at = 0.0
        self._data = data
        self._piece = piece
        self._error = error

    async def chunks(self) -> AsyncIterator[bytes]:
        for at in range(self.start, len(self._data), self._piece):
            yield self._data[at : at + self._piece]
        if self._error is not None:
            raise self._error


class Origin:
    """Opens fake bodies, and records the requested ranges and how many bodies are open."""

    def __init__(self, data: bytes, *, piece: int = 1000, ranges: bool = True, error: Exception | None = None) -> None:
        self.asked: list[tuple[int, int | None]] = []
        self.open = 0
        self._data, self._piece, self._ranges, self._error = data, piece, ranges, error

    @asynccontextmanager
    async def __call__(self, start: int, end: int | None) -> AsyncIterator[BlobBody]:
        self.asked.append((start, end))
        self.open += 1
        try:
            yield cast(BlobBody, Body(self._data, start if self._ranges else 0, self._piece, self._error))
        finally:
            self.open -= 1
