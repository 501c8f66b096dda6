"""Writing to direct connections: bodies arrive whole and in order, and nothing stays open when a client disconnects."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hubcache.direct import writer as writer_module
from hubcache.direct.writer import DirectWriter
from hubcache.mitm.handover import HandoverState
from hubcache.transfer.file_part import FilePart, SendfileUnsupported, send_file
from OpenSSL import SSL
from support.mitm import taddons
from support.standin import random_bytes
from support.tls_pair import VERSIONS, arrived, established, mitmproxy_fixture

known = mitmproxy_fixture()

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


@asynccontextmanager
async def client(
    known: taddons.context | None, version: int = SSL.TLS1_3_VERSION, patience: float = 60
) -> AsyncIterator[Client]:
    """A client that speaks TLS; without `known`, one that does not."""
    theirs, own = socket.socketpair()
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


async def send(writer: DirectWriter, chunks: list[bytes]) -> None:
    """Write a body as body delivery and a direct connection do."""
    try:
        writer.write(HEAD)
        for chunk in chunks:
            await writer.drain()
            writer.write(chunk)
        await writer.end()
    finally:
        writer.release_socket()


@pytest.mark.parametrize("version", [None, *VERSIONS])
async def test_body_arrives_with_what_is_sent_before_and_after_it(known: taddons.context, version: int | None) -> None:
    with no_descriptor_left_open():
        async with client(known if version else None, version or 0) as one:
            for _ in range(2):
                body = asyncio.ensure_future(send(one.writer, CHUNKS))
                expected = HEAD + b"".join(CHUNKS)
                assert await one.read(len(expected)) == expected
                await body
                assert not one.writer.uses_socket
                await one.writer.send(b"small")
                assert await one.read(5) == b"small"


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


async def test_large_chunks_are_written_to_the_socket_and_small_answers_are_not(known: taddons.context) -> None:
    async with client(known) as one:
        one.writer.write(HEAD)
        assert not one.writer.uses_socket
        one.writer.write(CHUNKS[0])
        assert one.writer.uses_socket
        assert not one.writer.is_paused
        one.writer.close()
        assert not one.writer.uses_socket


@pytest.mark.parametrize("version", [None, *VERSIONS])
async def test_large_answer_in_memory_is_written_by_the_transport(known: taddons.context, version: int | None) -> None:
    """With TLS 1.3, session tickets are sent before the first one."""
    async with client(known if version else None, version or 0) as one:
        await one.writer.send(CHUNKS[-1])
        assert not one.writer.uses_socket
        assert await one.read(len(CHUNKS[-1])) == CHUNKS[-1]


async def test_chunk_is_sent_after_what_the_transport_holds(known: taddons.context) -> None:
    async with client(known) as one:
        while not one.transport.get_write_buffer_size():
            one.writer.write(HEAD * 1000)
        held = one.transport.get_write_buffer_size()
        one.writer.write(CHUNKS[0])
        assert not one.writer.uses_socket
        assert one.transport.get_write_buffer_size() > held + len(CHUNKS[0])


async def test_pending_alert_is_sent_before_a_body(known: taddons.context) -> None:
    """A client of TLS 1.2 that asks for renegotiation causes one."""
    async with client(known, SSL.TLS1_2_VERSION) as one:
        assert one.tls is not None
        assert one.state.tls is not None
        one.writer.write(HEAD)
        one.tls.renegotiate()
        with contextlib.suppress(SSL.WantReadError):
            one.tls.do_handshake()
        assert one.state.tls.decrypt(one.tls.bio_read(65536)) == (b"", False)
        one.writer.write(CHUNKS[0])
        one.writer.close()
        with pytest.raises(SSL.Error, match="renegotiation"):
            await one.read(len(HEAD + CHUNKS[0]))


async def test_chunk_is_sent_also_when_no_descriptor_is_left(
    known: taddons.context, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(known) as one:
        one.writer.write(HEAD)
        own = one.transport.get_extra_info("socket")
        monkeypatch.setattr(type(own), "dup", lambda _: os.open("/nowhere", os.O_RDONLY))
        one.writer.write(CHUNKS[0])
        assert not one.writer.uses_socket
        assert await one.read(len(HEAD + CHUNKS[0])) == HEAD + CHUNKS[0]


async def test_disconnect_during_a_body_is_noticed(known: taddons.context) -> None:
    with no_descriptor_left_open():
        async with client(known) as one:
            body = asyncio.ensure_future(send(one.writer, CHUNKS))
            await one.read(1000)
            one.socket.close()
            with pytest.raises(OSError, match="disconnected"):
                await asyncio.wait_for(body, 10)
            one.writer.close()


async def test_client_that_does_not_read_is_disconnected(known: taddons.context) -> None:
    with no_descriptor_left_open():
        async with client(known, patience=0.1) as one:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(send(one.writer, CHUNKS), 10)
            assert one.transport.is_closing()
            one.writer.close()


async def test_cancelled_body_leaves_no_descriptor_open(known: taddons.context) -> None:
    with no_descriptor_left_open():
        async with client(known) as one:
            body = asyncio.ensure_future(send(one.writer, CHUNKS))
            await one.read(1000)
            body.cancel()
            with pytest.raises(asyncio.CancelledError):
                await body
            one.writer.close()
            assert one.transport.is_closing()


async def test_end_waits_for_the_last_chunk(known: taddons.context) -> None:
    async with client(known) as one:
        one.writer.write(HEAD)
        one.writer.write(CHUNKS[-1])
        end = asyncio.ensure_future(one.writer.end())
        await asyncio.sleep(0.01)
        assert not end.done()
        assert await one.read(len(HEAD + CHUNKS[-1])) == HEAD + CHUNKS[-1]
        await end
        one.writer.release_socket()


async def test_request_received_during_a_body_is_decrypted_after_it(known: taddons.context) -> None:
    async with client(known) as one:
        assert one.tls is not None
        assert one.state.tls is not None
        one.writer.write(HEAD)
        one.writer.write(CHUNKS[-1])
        one.tls.sendall(b"next")
        await asyncio.get_running_loop().sock_sendall(one.socket, one.tls.bio_read(65536))
        end = asyncio.ensure_future(one.writer.end())
        assert await one.read(len(HEAD + CHUNKS[-1])) == HEAD + CHUNKS[-1]
        await end
        one.writer.release_socket()
        assert one.state.tls.decrypt(one.protocol.received) == (b"next", False)
