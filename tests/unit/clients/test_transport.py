"""The transport of accepted clients: bytes arrive whole and in order, and each connection ends once."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hubcache.clients.transport import ClientTransport
from support.direct_writer import no_descriptor_left_open, tcp_pair
from support.standin import random_bytes
from support.users import until

LARGE = random_bytes(600_000, "body")
"""More than the sockets take at once."""


class Recorder(asyncio.Protocol):
    """A protocol that records its calls; with `keeps_open`, the client's end does not close the connection."""

    def __init__(self, *, keeps_open: bool = False) -> None:
        self.keeps_open = keeps_open
        self.received = b""
        self.ends: list[Exception | None] = []
        self.has_eof = False
        self.is_full = False
        self.paused = 0

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        assert not self.has_eof
        self.has_eof = True
        return self.keeps_open

    def pause_writing(self) -> None:
        assert not self.is_full
        self.is_full = True
        self.paused += 1

    def resume_writing(self) -> None:
        assert self.is_full
        self.is_full = False

    def connection_lost(self, error: Exception | None) -> None:
        self.ends.append(error)


class Connected:
    """A client's socket, and the transport at the other end, which is not started."""

    def __init__(self, client: socket.socket, own: socket.socket) -> None:
        self.client = client
        self.own = own
        self.transport = ClientTransport(own, ("10.0.0.1", 5))

    async def read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.client, 65536), 10)
            assert data, f"ended after {len(content)} of {count} bytes"
            content += data
        return content

    async def read_end(self) -> None:
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.client, 1), 10) == b""


@asynccontextmanager
async def connected() -> AsyncIterator[Connected]:
    with no_descriptor_left_open():
        client, own = tcp_pair()
        with client:
            client.setblocking(False)
            own.setblocking(False)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
            one = Connected(client, own)
            try:
                yield one
            finally:
                one.transport.abort()
                await until(lambda: own.fileno() < 0)


@pytest.fixture
def protocol() -> Recorder:
    return Recorder()


async def test_bytes_sent_before_the_start_are_received_at_once(protocol: Recorder) -> None:
    async with connected() as one:
        one.client.send(b"hello")
        one.transport.start(protocol)
        assert protocol.received == b"hello"
        one.client.send(b" again")
        await until(lambda: protocol.received == b"hello again")


async def test_nothing_is_received_while_reading_is_paused(protocol: Recorder) -> None:
    async with connected() as one:
        one.transport.pause_reading()
        one.client.send(b"a")
        one.transport.start(protocol)
        await asyncio.sleep(0)
        assert not one.transport.is_reading()
        assert protocol.received == b""
        one.transport.resume_reading()
        assert one.transport.is_reading()
        await until(lambda: protocol.received == b"a")
        one.transport.pause_reading()
        one.client.send(b"b")
        for _ in range(3):
            await asyncio.sleep(0)
        assert protocol.received == b"a"
        one.transport.resume_reading()
        await until(lambda: protocol.received == b"ab")


async def test_much_data_arrives_in_order_and_the_protocol_pauses_meanwhile(protocol: Recorder) -> None:
    async with connected() as one:
        one.transport.start(protocol)
        for start in range(0, len(LARGE), 100_000):
            one.transport.write(LARGE[start : start + 100_000])
        assert protocol.is_full
        assert one.transport.get_write_buffer_size() > one.transport.get_write_buffer_limits()[1]
        assert await one.read(len(LARGE)) == LARGE
        await until(lambda: not one.transport.get_write_buffer_size())
        assert not protocol.is_full
        assert protocol.paused == 1
        one.transport.write(b"small")
        assert not one.transport.get_write_buffer_size()
        assert await one.read(5) == b"small"


async def test_unsent_bytes_are_sent_before_the_connection_closes(protocol: Recorder) -> None:
    async with connected() as one:
        one.transport.start(protocol)
        one.transport.write(LARGE)
        one.transport.close()
        one.transport.write(b"too late")
        assert one.transport.is_closing()
        assert not one.transport.is_reading()
        assert await one.read(len(LARGE)) == LARGE
        await one.read_end()
        assert protocol.ends == [None]


async def test_closed_connection_ends_once_and_not_within_the_call(protocol: Recorder) -> None:
    async with connected() as one:
        one.transport.start(protocol)
        one.transport.close()
        one.transport.close()
        one.transport.abort()
        assert protocol.ends == []
        await until(lambda: one.own.fileno() < 0)
        assert protocol.ends == [None]
        assert one.transport.get_extra_info("sockname", "gone") == "gone"


async def test_aborted_connection_drops_unsent_bytes(protocol: Recorder) -> None:
    async with connected() as one:
        one.transport.start(protocol)
        one.transport.write(LARGE)
        one.transport.abort()
        assert not one.transport.get_write_buffer_size()
        await until(lambda: protocol.ends)
        assert protocol.ends == [None]


@pytest.mark.parametrize("unsent", [b"", LARGE])
async def test_reset_by_the_client_is_reported_with_its_error(protocol: Recorder, unsent: bytes) -> None:
    async with connected() as one:
        one.transport.start(protocol)
        one.transport.write(unsent)
        one.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.client.close()
        await until(lambda: protocol.ends)
        assert [type(error) for error in protocol.ends] == [ConnectionResetError]


async def test_end_of_the_client_closes_the_connection(protocol: Recorder) -> None:
    async with connected() as one:
        one.transport.start(protocol)
        one.client.send(b"last")
        one.client.shutdown(socket.SHUT_WR)
        await one.read_end()
        assert (protocol.received, protocol.has_eof, protocol.ends) == (b"last", True, [None])


async def test_client_that_ended_still_receives_where_the_protocol_wants_it() -> None:
    protocol = Recorder(keeps_open=True)
    async with connected() as one:
        one.transport.start(protocol)
        one.client.shutdown(socket.SHUT_WR)
        await until(lambda: protocol.has_eof)
        one.transport.pause_reading()
        one.transport.resume_reading()
        one.transport.write(LARGE)
        one.transport.write_eof()
        one.transport.write_eof()
        one.transport.write(b"too late")
        assert await one.read(len(LARGE)) == LARGE
        await one.read_end()
        assert protocol.ends == []


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_connection_that_ends_when_writing_resumes_is_watched_no_longer(
    protocol: Recorder, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    async with connected() as one:
        monkeypatch.setattr(protocol, "resume_writing", getattr(one.transport, action))
        one.transport.start(protocol)
        descriptor = one.own.fileno()
        one.transport.write(LARGE)
        assert await one.read(len(LARGE)) == LARGE
        await until(lambda: one.own.fileno() < 0)
        assert protocol.ends == [None]
        assert not asyncio.get_running_loop().remove_writer(descriptor)


async def test_protocol_that_writes_when_writing_resumes_goes_on(
    protocol: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected() as one:
        monkeypatch.setattr(protocol, "resume_writing", lambda: one.transport.write(LARGE))
        one.transport.start(protocol)
        one.transport.write(LARGE)
        assert (await one.read(2 * len(LARGE)))[: 2 * len(LARGE)] == LARGE + LARGE


async def test_client_may_send_after_it_received_the_end(protocol: Recorder) -> None:
    async with connected() as one:
        one.transport.start(protocol)
        assert one.transport.can_write_eof()
        one.transport.write_eof()
        await one.read_end()
        one.client.send(b"more")
        await until(lambda: protocol.received == b"more")


@pytest.mark.parametrize("method", ["connection_made", "data_received", "eof_received"])
async def test_connection_is_closed_after_a_defect_of_the_protocol(
    protocol: Recorder, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(Recorder, method, fail)
    async with connected() as one:
        one.client.send(b"" if method == "eof_received" else b"x")
        if method == "eof_received":
            one.client.shutdown(socket.SHUT_WR)
        with pytest.raises(AssertionError, match="a defect"):
            one.transport.start(protocol)
        assert one.transport.is_closing()
        await until(lambda: protocol.ends)
        assert protocol.ends == [None]


async def test_another_protocol_continues_the_connection(protocol: Recorder) -> None:
    other = Recorder()
    async with connected() as one:
        one.client.send(b"a")
        one.transport.start(protocol)
        one.transport.set_protocol(other)
        assert one.transport.get_protocol() is other
        one.client.send(b"b")
        await until(lambda: other.received == b"b")
        one.transport.close()
        await until(lambda: other.ends)
        assert (protocol.received, protocol.ends, other.ends) == (b"a", [], [None])


async def test_streams_of_asyncio_work_on_it() -> None:
    """mitmproxy serves clients by them."""
    served: list[tuple[object, object]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append((writer.get_extra_info("peername"), writer.get_extra_info("sockname")))
        while data := await reader.read(65535):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with connected() as one:
        address = one.own.getsockname()
        one.transport.start(asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve))
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(one.client, LARGE))
        assert await one.read(len(LARGE)) == LARGE
        await sending
        one.client.shutdown(socket.SHUT_WR)
        await one.read_end()
        assert served == [(("10.0.0.1", 5), address)]
        assert one.transport.get_extra_info("socket") is one.own
        assert one.transport.get_extra_info("cipher", "none") == "none"
