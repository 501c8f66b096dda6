"""Writing files to direct connections, through one buffer or by the kernel."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from hubcache.direct import writer as writer_module
from hubcache.direct.writer import DirectWriter
from hubcache.transfer.file_part import FilePart, SendfileUnsupported, send_file
from support.direct_writer import CHUNKS, HEAD, Client, client, no_descriptor_left_open
from support.mitm import taddons
from support.standin import random_bytes
from support.tls_pair import VERSIONS, mitmproxy_fixture

known = mitmproxy_fixture()


class Part:
    """Bytes of a file that are read, since the kernel cannot send them."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def read_into(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def send_to(self, socket: int, most: int) -> int:
        raise SendfileUnsupported


class PartOnFile:
    """Bytes of the file `fd` that the kernel can send; `sent` counts them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._at = 0
        self.sent = 0

    def read_into(self, buffer: memoryview) -> int:
        count = os.preadv(self.fd, [buffer], self._at)
        self._at += count
        return count

    def send_to(self, socket: int, most: int) -> int:
        count = send_file(socket, self.fd, self._at, most, lambda error: pytest.fail(str(error)))
        self._at += count
        self.sent += count
        return count


@contextlib.contextmanager
def on_file(data: bytes) -> Iterator[PartOnFile]:
    fd = os.memfd_create("part")
    try:
        assert os.write(fd, data) == len(data)
        yield PartOnFile(fd)
    finally:
        os.close(fd)


def turn(writer: DirectWriter, part: FilePart, most: int) -> int:
    """Write bytes of a file once; returns their number."""
    counts: list[int] = []
    writer.write_from(part, most, counts.append)
    return sum(counts)


async def write_file(writer: DirectWriter, data: bytes, most: int, part: FilePart | None = None) -> list[int]:
    """Write a file as body delivery and a direct connection do; returns the bytes of each turn."""
    part, turns = part or Part(data), []
    try:
        writer.write(HEAD)
        while sum(turns) < len(data):
            await writer.drain()
            turns.append(turn(writer, part, most))
        await writer.end()
    finally:
        writer.release_socket()
    return turns


@pytest.mark.parametrize("version", [None, *VERSIONS])
@pytest.mark.parametrize("most", [1000, 100_000, DirectWriter.chunk_size])
async def test_file_is_sent_to_many_clients_through_one_buffer(
    known: taddons.context, version: int | None, most: int
) -> None:
    bodies = [random_bytes(1_000_000, f"body {number}") for number in range(4)]
    with no_descriptor_left_open():
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(client(known if version else None, version or 0)) for _ in bodies
            ]
            writing = [write_file(one.writer, body, most) for one, body in zip(clients, bodies, strict=True)]
            reading = [one.read(len(HEAD + body)) for one, body in zip(clients, bodies, strict=True)]
            results = await asyncio.gather(*writing, *reading)
            assert results[4:] == [HEAD + body for body in bodies]
            for one in clients:
                await one.writer.send(b"small")
                assert await one.read(5) == b"small"


async def test_kernel_sends_files_without_tls_and_answers_follow_in_order() -> None:
    bodies = [random_bytes(3_000_000, f"body {number}") for number in range(4)]
    with contextlib.ExitStack() as files:
        parts = [files.enter_context(on_file(body)) for body in bodies]
        files.enter_context(no_descriptor_left_open())
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(client(None)) for _ in bodies]
            writing = [
                write_file(one.writer, body, 1000, part) for one, body, part in zip(clients, bodies, parts, strict=True)
            ]
            reading = [one.read(len(HEAD + body)) for one, body in zip(clients, bodies, strict=True)]
            results = await asyncio.gather(*writing, *reading)
            assert results[4:] == [HEAD + body for body in bodies]
            assert [part.sent for part in parts] == [len(body) for body in bodies]
            for one in clients:
                await one.writer.send(b"small")
                assert await one.read(5) == b"small"


async def test_kernel_sends_nothing_while_the_transport_has_bytes_to_send() -> None:
    with on_file(CHUNKS[0]) as part:
        async with client(None) as one:
            one.writer.write(CHUNKS[-1])
            count = turn(one.writer, part, 1000)
            assert (count, part.sent) == (1000, 0)
            content, _ = await asyncio.gather(one.read(len(CHUNKS[-1]) + count), one.writer.drain())
            assert content == CHUNKS[-1] + CHUNKS[0][:count]
            count = turn(one.writer, part, 1000)
            assert part.sent == count > 1000
            assert await one.read(count) == CHUNKS[0][1000 : 1000 + count]
            one.writer.release_socket()


async def test_client_that_takes_nothing_that_the_kernel_sends_is_disconnected() -> None:
    with on_file(CHUNKS[-1]) as part, no_descriptor_left_open():
        async with client(None, patience=0.1) as one:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(write_file(one.writer, CHUNKS[-1], 1000, part), 10)
            one.writer.close()


async def test_client_that_disconnects_while_the_kernel_sends_is_noticed() -> None:
    with on_file(CHUNKS[-1]) as part:
        async with client(None) as one:
            writing = asyncio.ensure_future(write_file(one.writer, CHUNKS[-1], 1000, part))
            await one.read(1000)
            one.socket.close()
            with pytest.raises(OSError, match=r"disconnected|pipe|reset"):
                await asyncio.wait_for(writing, 10)


class Failing(PartOnFile):
    """A file whose third chunk cannot be read or sent."""

    chunks = 0

    def _begin_chunk(self) -> None:
        self.chunks += 1
        if self.chunks == 3:
            raise ConnectionResetError

    def read_into(self, buffer: memoryview) -> int:
        self._begin_chunk()
        return super().read_into(buffer)

    def send_to(self, socket: int, most: int) -> int:
        self._begin_chunk()
        return super().send_to(socket, 1000)


@pytest.mark.parametrize("tls", [False, True])
async def test_chunks_before_an_error_in_the_same_turn_are_counted(known: taddons.context, tls: bool) -> None:
    with on_file(CHUNKS[0]) as whole:
        async with client(known if tls else None) as one:
            counts: list[int] = []
            with pytest.raises(ConnectionResetError):
                one.writer.write_from(Failing(whole.fd), 1000, counts.append)
            one.writer.release_socket()
            assert counts == [1000, 1000]
            assert await one.read(2000) == CHUNKS[0][:2000]


async def begin(one: Client) -> None:
    """Begin a body of which the client takes a large chunk."""
    one.writer.write(HEAD)
    one.writer.write(CHUNKS[2])
    content, _ = await asyncio.gather(one.read(len(HEAD + CHUNKS[2])), one.writer.drain())
    assert content == HEAD + CHUNKS[2]
    assert one.writer.uses_socket


async def test_turn_ends_when_the_client_takes_no_more_or_at_its_limit(
    known: taddons.context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_MAX_TURN", 4000)
    data = CHUNKS[-1]
    async with client(known) as one:
        await begin(one)
        part = Part(data)
        assert turn(one.writer, part, 1000) == 4000
        sent = 4000
        while (count := turn(one.writer, part, 1000)) == 4000:
            sent += count
        sent += count
        assert count % 1000 == 0
        waiting = asyncio.ensure_future(one.writer.drain())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert await one.read(sent) == data[:sent]
        await waiting
        one.writer.release_socket()


async def test_nothing_is_sent_where_nothing_can_be_read(known: taddons.context) -> None:
    async with client(known) as one:
        assert turn(one.writer, Part(b""), 1000) == 0
        await begin(one)
        assert turn(one.writer, Part(b""), 1000) == 0
        await one.writer.drain()
        one.writer.release_socket()


async def test_nothing_more_is_read_for_a_disconnected_client() -> None:
    async with client(None) as one:
        one.socket.close()
        assert turn(one.writer, Part(CHUNKS[-1]), 1000) <= 2000
        with pytest.raises(OSError, match="disconnected"):
            await one.writer.drain()
        one.writer.release_socket()


async def test_client_that_takes_nothing_of_a_file_is_disconnected(known: taddons.context) -> None:
    with no_descriptor_left_open():
        async with client(known, patience=0.1) as one:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(write_file(one.writer, CHUNKS[-1], 1000), 10)
            one.writer.close()
