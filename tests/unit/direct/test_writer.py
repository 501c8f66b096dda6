"""What is sent to clients straight from OpenSSL to their sockets: whole, in order, and given up when they leave."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hubcache.direct import writer as sending_module
from hubcache.direct.writer import DirectWriter
from hubcache.mitm.handover import HandoverState
from hubcache.transfer.sources import ReadInto
from OpenSSL import SSL
from support.mitm import taddons
from support.standin import random_bytes
from support.tls_pair import VERSIONS, arrived, established, known_fixture

known = known_fixture()

CHUNKS = [random_bytes(size, f"{size}") for size in (300_000, 1, 262_144, 1_000_000)]
"""More than the sockets take at once."""
HEAD = b"head"


class Protocol(asyncio.Protocol):
    """The transport's side of a `DirectWriter`."""

    sending: DirectWriter
    received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.sending.pause()

    def resume_writing(self) -> None:
        self.sending.resume()

    def connection_lost(self, _: Exception | None) -> None:
        self.sending.resume()


@dataclass
class Client:
    """One that reads when it is told to; `sending` is what sends to it, over `transport`."""

    socket: socket.socket
    tls: SSL.Connection | None
    transport: asyncio.Transport
    protocol: Protocol
    said: HandoverState

    @property
    def sending(self) -> DirectWriter:
        return self.protocol.sending

    async def read(self, count: int) -> bytes:
        """The next bytes of what was sent."""
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
    """A client in TLS; without `known` in the clear."""
    theirs, own = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        own.setblocking(False)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
        protocol = Protocol()
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, own)
        tls, made = established(known, version) if known else (None, None)
        said = HandoverState(tls=made, is_secure=known is not None)
        assert isinstance(transport, asyncio.Transport)
        protocol.sending = DirectWriter(transport, said, patience)
        try:
            yield Client(theirs, tls, transport, protocol, said)
        finally:
            transport.abort()
            await asyncio.sleep(0)


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def send(sending: DirectWriter, chunks: list[bytes]) -> None:
    """As body delivery and a direct connection do."""
    try:
        sending.write(HEAD)
        for chunk in chunks:
            await sending.drain()
            sending.write(chunk)
        await sending.end()
    finally:
        sending.release_socket()


@pytest.mark.parametrize("version", [None, *VERSIONS])
async def test_body_and_what_is_sent_before_and_after_it_arrives(known: taddons.context, version: int | None) -> None:
    with nothing_left_open():
        async with client(known if version else None, version or 0) as one:
            for _ in range(2):
                body = asyncio.ensure_future(send(one.sending, CHUNKS))
                expected = HEAD + b"".join(CHUNKS)
                assert await one.read(len(expected)) == expected
                await body
                assert not one.sending.uses_socket
                await one.sending.send(b"small")
                assert await one.read(5) == b"small"


def taking(data: bytes) -> ReadInto:
    """What reads `data` into buffers."""
    rest = memoryview(data)

    def take(buffer: memoryview) -> int:
        nonlocal rest
        count = min(len(buffer), len(rest))
        buffer[:count], rest = rest[:count], rest[count:]
        return count

    return take


async def pour(sending: DirectWriter, data: bytes, most: int) -> list[int]:
    """As body delivery and a direct connection do; gives what was sent at each turn."""
    take, turns = taking(data), []
    try:
        sending.write(HEAD)
        while sum(turns) < len(data):
            await sending.drain()
            turns.append(sending.write_from(take, most))
        await sending.end()
    finally:
        sending.release_socket()
    return turns


@pytest.mark.parametrize("version", [None, *VERSIONS])
@pytest.mark.parametrize("most", [1000, 100_000, DirectWriter.chunk_size])
async def test_file_is_poured_to_many_clients_at_once_through_one_buffer(
    known: taddons.context, version: int | None, most: int
) -> None:
    bodies = [random_bytes(1_000_000, f"body {number}") for number in range(4)]
    with nothing_left_open():
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(client(known if version else None, version or 0)) for _ in bodies
            ]
            pouring = [pour(one.sending, body, most) for one, body in zip(clients, bodies, strict=True)]
            reading = [one.read(len(HEAD + body)) for one, body in zip(clients, bodies, strict=True)]
            results = await asyncio.gather(*pouring, *reading)
            assert results[4:] == [HEAD + body for body in bodies]
            for one in clients:
                await one.sending.send(b"small")
                assert await one.read(5) == b"small"


async def begin(one: Client) -> None:
    """A body, of which the client takes a large chunk."""
    one.sending.write(HEAD)
    one.sending.write(CHUNKS[2])
    content, _ = await asyncio.gather(one.read(len(HEAD + CHUNKS[2])), one.sending.drain())
    assert content == HEAD + CHUNKS[2]
    assert one.sending.uses_socket


async def test_turn_ends_where_the_client_takes_no_more_or_after_a_while(
    known: taddons.context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending_module, "_MAX_TURN", 4000)
    data = CHUNKS[-1]
    async with client(known) as one:
        await begin(one)
        take = taking(data)
        assert one.sending.write_from(take, 1000) == 4000
        poured = 4000
        while (turn := one.sending.write_from(take, 1000)) == 4000:
            poured += turn
        poured += turn
        assert turn % 1000 == 0
        waiting = asyncio.ensure_future(one.sending.drain())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert await one.read(poured) == data[:poured]
        await waiting
        one.sending.release_socket()


async def test_nothing_is_poured_where_nothing_can_be_read(known: taddons.context) -> None:
    async with client(known) as one:
        assert one.sending.write_from(taking(b""), 1000) == 0
        await begin(one)
        assert one.sending.write_from(taking(b""), 1000) == 0
        await one.sending.drain()
        one.sending.release_socket()


async def test_nothing_more_is_read_for_a_client_that_left() -> None:
    async with client(None) as one:
        one.socket.close()
        assert one.sending.write_from(taking(CHUNKS[-1]), 1000) <= 2000
        with pytest.raises(OSError, match="disconnected"):
            await one.sending.drain()


async def test_client_that_takes_nothing_of_what_is_poured_is_left(known: taddons.context) -> None:
    with nothing_left_open():
        async with client(known, patience=0.1) as one:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pour(one.sending, CHUNKS[-1], 1000), 10)
            one.sending.close()


async def test_large_chunks_go_straight_and_small_answers_do_not(known: taddons.context) -> None:
    async with client(known) as one:
        one.sending.write(HEAD)
        assert not one.sending.uses_socket
        one.sending.write(CHUNKS[0])
        assert one.sending.uses_socket
        assert not one.sending.is_paused
        one.sending.close()
        assert not one.sending.uses_socket


@pytest.mark.parametrize("version", [None, *VERSIONS])
async def test_large_answer_at_once_is_the_transports(known: taddons.context, version: int | None) -> None:
    """With TLS 1.3 there is something to be sent before the first one."""
    async with client(known if version else None, version or 0) as one:
        await one.sending.send(CHUNKS[-1])
        assert not one.sending.uses_socket
        assert await one.read(len(CHUNKS[-1])) == CHUNKS[-1]


async def test_chunk_waits_for_what_the_transport_has_not_sent(known: taddons.context) -> None:
    async with client(known) as one:
        while not one.transport.get_write_buffer_size():
            one.sending.write(HEAD * 1000)
        held = one.transport.get_write_buffer_size()
        one.sending.write(CHUNKS[0])
        assert not one.sending.uses_socket
        assert one.transport.get_write_buffer_size() > held + len(CHUNKS[0])


async def test_alert_that_waits_goes_before_a_body(known: taddons.context) -> None:
    """One is left by a client of TLS 1.2 that would agree on everything anew."""
    async with client(known, SSL.TLS1_2_VERSION) as one:
        assert one.tls is not None
        assert one.said.tls is not None
        one.sending.write(HEAD)
        one.tls.renegotiate()
        with contextlib.suppress(SSL.WantReadError):
            one.tls.do_handshake()
        assert one.said.tls.decrypt(one.tls.bio_read(65536)) == (b"", False)
        one.sending.write(CHUNKS[0])
        one.sending.close()
        with pytest.raises(SSL.Error, match="renegotiation"):
            await one.read(len(HEAD + CHUNKS[0]))


async def test_chunk_is_sent_also_when_no_descriptor_is_left(
    known: taddons.context, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(known) as one:
        one.sending.write(HEAD)
        own = one.transport.get_extra_info("socket")
        monkeypatch.setattr(type(own), "dup", lambda _: os.open("/nowhere", os.O_RDONLY))
        one.sending.write(CHUNKS[0])
        assert not one.sending.uses_socket
        assert await one.read(len(HEAD + CHUNKS[0])) == HEAD + CHUNKS[0]


async def test_client_that_leaves_during_a_body_is_noticed(known: taddons.context) -> None:
    with nothing_left_open():
        async with client(known) as one:
            body = asyncio.ensure_future(send(one.sending, CHUNKS))
            await one.read(1000)
            one.socket.close()
            with pytest.raises(OSError, match="disconnected"):
                await asyncio.wait_for(body, 10)
            one.sending.close()


async def test_client_that_does_not_read_is_left(known: taddons.context) -> None:
    with nothing_left_open():
        async with client(known, patience=0.1) as one:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(send(one.sending, CHUNKS), 10)
            assert one.transport.is_closing()
            one.sending.close()


async def test_body_that_is_broken_off_leaves_no_descriptor(known: taddons.context) -> None:
    with nothing_left_open():
        async with client(known) as one:
            body = asyncio.ensure_future(send(one.sending, CHUNKS))
            await one.read(1000)
            body.cancel()
            with pytest.raises(asyncio.CancelledError):
                await body
            one.sending.close()
            assert one.transport.is_closing()


async def test_last_chunk_is_waited_for_at_the_end_alone(known: taddons.context) -> None:
    async with client(known) as one:
        one.sending.write(HEAD)
        one.sending.write(CHUNKS[-1])
        end = asyncio.ensure_future(one.sending.end())
        await asyncio.sleep(0.01)
        assert not end.done()
        assert await one.read(len(HEAD + CHUNKS[-1])) == HEAD + CHUNKS[-1]
        await end
        one.sending.release_socket()


async def test_what_a_client_says_during_a_body_is_there_after_it(known: taddons.context) -> None:
    async with client(known) as one:
        assert one.tls is not None
        assert one.said.tls is not None
        one.sending.write(HEAD)
        one.sending.write(CHUNKS[-1])
        one.tls.sendall(b"next")
        await asyncio.get_running_loop().sock_sendall(one.socket, one.tls.bio_read(65536))
        end = asyncio.ensure_future(one.sending.end())
        assert await one.read(len(HEAD + CHUNKS[-1])) == HEAD + CHUNKS[-1]
        await end
        one.sending.release_socket()
        assert one.said.tls.decrypt(one.protocol.received) == (b"next", False)
