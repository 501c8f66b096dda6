"""Writing to direct connections: bodies arrive whole and in order, and nothing stays open when a client disconnects."""

import asyncio
import contextlib
import os
import socket

import pytest
from hubcache.direct.writer import DirectWriter
from hubcache.mitm.tls import TlsConnection
from OpenSSL import SSL
from support.direct_writer import CHUNKS, HEAD, Client, client, no_descriptor_left_open, tcp_pair
from support.mitm import taddons
from support.tls_pair import VERSIONS, mitmproxy_fixture
from support.users import until

known = mitmproxy_fixture()


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


async def test_large_chunks_are_written_to_the_socket_and_small_answers_are_not(known: taddons.context) -> None:
    async with client(known) as one:
        one.writer.write(HEAD)
        assert not one.writer.uses_socket
        one.writer.write(CHUNKS[0])
        assert one.writer.uses_socket
        assert not one.writer.is_paused
        one.writer.close()
        assert not one.writer.uses_socket


async def test_records_of_a_chunk_are_sent_together_and_at_once(
    known: taddons.context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the socket does not take the whole chunk."""
    held_back: list[int] = []
    write_to_socket = TlsConnection.write_to_socket

    def is_held_back(one: Client) -> int:
        return one.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)

    async with client(known, connect=tcp_pair) as one:

        def observed(tls: TlsConnection, data: bytes) -> bool:
            held_back.append(is_held_back(one))
            return write_to_socket(tls, data)

        monkeypatch.setattr(TlsConnection, "write_to_socket", observed)
        body = asyncio.ensure_future(send(one.writer, CHUNKS))
        await until(lambda: bool(held_back) and not body.done())
        assert not is_held_back(one)
        expected = HEAD + b"".join(CHUNKS)
        assert await one.read(len(expected)) == expected
        await body
        assert set(held_back) == {1}
        assert not is_held_back(one)


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
