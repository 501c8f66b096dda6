"""A direct connection without a socket: clients that disconnect, and limits for those that are slow or send nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hubcache.clients.limits import ClientLimits
from hubcache.direct import connection
from hubcache.direct.connection import DirectConnection
from hubcache.direct.tunnel_setup import TunnelSetup
from hubcache.direct.writer import DirectWriter
from hubcache.oci.registry import HUB_HOST
from hubcache.serve.messages import Answer, Result
from hubcache.transfer.sources import BytesSource
from support.direct import CLIENT, REQUEST, DirectClient, PendingAnswer, answer_at_once, endless_answer, small_answer
from support.http_client import head
from support.users import until


async def test_source_is_closed_when_the_client_disconnects_before_its_answer() -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.send(REQUEST)
    client.disconnect()
    answer, source = endless_answer()
    pending.set(answer)
    await until(lambda: source.is_closed)
    await until(lambda: client.log_lines)
    assert client.log_lines[0].endswith("<< 200 hit broken off")
    assert client.failures == []


async def test_nothing_is_sent_when_the_client_disconnects_before_its_small_answer() -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.send(REQUEST + REQUEST)
    client.disconnect()
    pending.set(small_answer())
    await until(lambda: client.log_lines)
    assert client.transport.sent == b""
    assert len(pending.requests) == 1


async def test_source_is_closed_when_the_client_disconnects_during_a_body(caplog: pytest.LogCaptureFixture) -> None:
    answer, source = endless_answer()
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.connection.pause_writing()
    client.send(REQUEST)
    pending.set(answer)
    await until(lambda: client.transport.sent)
    client.disconnect()
    await until(lambda: source.is_closed)
    await asyncio.sleep(0)
    assert (client.failures, caplog.records) == ([], [])
    assert [line.partition(" << ")[2] for line in client.log_lines] == ["200 hit broken off"]


async def test_socket_is_released_when_the_client_disconnects_while_the_source_is_being_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(BytesSource):
        closing = False

        async def close(self) -> None:
            self.closing = True
            await asyncio.Event().wait()

    source, pending = Slow(b"body"), PendingAnswer()
    client = DirectClient(pending)
    released: list[DirectWriter] = []
    monkeypatch.setattr(DirectWriter, "release_socket", lambda writer: released.append(writer))
    client.send(REQUEST)
    pending.set(Answer(200, {}, Result.HIT, source=source, length=4))
    await until(lambda: source.closing)
    assert released == []
    client.disconnect()
    await until(lambda: released)


async def test_client_that_does_not_read_its_answers_is_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    client = DirectClient(answer_at_once, idle_seconds=0.1)
    client.connection.pause_writing()
    client.send(REQUEST * 2)
    await until(lambda: client.transport.is_aborted)
    client.disconnect()
    await until(lambda: client.log_lines)
    assert (client.transport.sent, len(client.log_lines), caplog.records) == (b"", 1, [])


async def test_body_waits_while_the_client_does_not_read() -> None:
    answer, source = endless_answer()
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.connection.pause_writing()
    client.send(REQUEST)
    pending.set(answer)
    await until(lambda: client.transport.sent)
    for _ in range(10):
        await asyncio.sleep(0)
    assert client.transport.sent.endswith(b"\r\n\r\n")
    client.connection.resume_writing()
    await until(lambda: client.transport.sent.endswith(b"x"))
    client.disconnect()
    await until(lambda: source.is_closed)


async def test_client_that_does_not_read_its_body_is_disconnected() -> None:
    answer, source = endless_answer()
    pending = PendingAnswer()
    client = DirectClient(pending, idle_seconds=0.1)
    client.connection.pause_writing()
    client.send(REQUEST)
    pending.set(answer)
    await until(lambda: source.is_closed)
    assert client.transport.is_aborted
    assert client.failures == []
    client.disconnect()


async def test_silent_client_is_disconnected_and_one_that_waits_for_an_answer_is_not() -> None:
    pending = PendingAnswer()
    silent, later, waiting = (
        DirectClient(answer_at_once, idle_seconds=0.1),
        DirectClient(answer_at_once, idle_seconds=0.2),
        DirectClient(pending, idle_seconds=0.1),
    )
    waiting.send(REQUEST)
    await until(lambda: silent.transport.is_aborted and later.transport.is_aborted)
    silent.disconnect()
    later.disconnect()
    assert not waiting.transport.is_closing()
    pending.set(small_answer())
    await until(lambda: waiting.transport.is_aborted)
    assert len(waiting.log_lines) == 1
    waiting.disconnect()


async def test_head_has_a_time_limit_that_received_bytes_do_not_extend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.2)
    begun = asyncio.get_running_loop().time()
    client, pending = DirectClient(answer_at_once), PendingAnswer()
    waiting = DirectClient(pending)
    waiting.send(REQUEST)
    while not client.transport.is_aborted:
        client.send(b"G")
        await asyncio.sleep(0.01)
    assert asyncio.get_running_loop().time() - begun >= 0.2
    assert not waiting.transport.is_closing()
    pending.set(small_answer())
    await until(lambda: waiting.log_lines)
    other = DirectClient(answer_at_once)
    await until(lambda: other.transport.is_aborted)
    assert not waiting.transport.is_closing()  # an idle connection has another time limit
    waiting.send(REQUEST[:10])
    await until(lambda: waiting.transport.is_aborted)
    for each in (client, waiting, other):
        each.disconnect()
    assert (client.handed_over, len(waiting.log_lines)) == ([], 1)


@pytest.mark.parametrize("head", [REQUEST, b"\r\n" + REQUEST, REQUEST.replace(b"GET", b"PUT")])
async def test_incomplete_head_is_waited_for(head: bytes) -> None:
    client = DirectClient(answer_at_once)
    for byte in head[:-1]:
        client.send(bytes([byte]))
    await asyncio.sleep(0)
    assert (client.transport.sent, client.handed_over) == (b"", [])
    client.send(head[-1:])
    await until(lambda: client.log_lines or client.handed_over)
    client.disconnect()


async def test_too_long_head_is_handed_over_for_mitmproxy_to_refuse() -> None:
    client = DirectClient(answer_at_once)
    client.send(b"G" * (64 << 10))
    await asyncio.sleep(0)
    assert client.handed_over == []
    client.send(b"G")
    await until(lambda: client.handed_over)
    client.disconnect()


async def test_idle_connection_is_closed_for_others_and_a_busy_one_is_not() -> None:
    limits, pending = ClientLimits(1000), PendingAnswer()
    busy, idle, later = (
        DirectClient(pending, limits=limits),
        DirectClient(answer_at_once, limits=limits),
        DirectClient(answer_at_once, limits=limits),
    )
    for client in (busy, idle, later):
        client.send(REQUEST)
    assert limits.close_oldest()
    assert [client.transport.is_aborted for client in (busy, idle, later)] == [False, True, False]
    pending.set(small_answer())
    await until(lambda: busy.log_lines)
    assert limits.close_oldest()
    assert limits.close_oldest()
    assert not limits.close_oldest()
    assert [client.transport.is_aborted for client in (busy, idle, later)] == [True, True, True]
    for client in (busy, idle, later):
        client.disconnect()


@pytest.mark.parametrize("action", [DirectConnection.disconnect, DirectConnection.close, DirectConnection.abort])
async def test_handshake_that_this_program_ends_is_not_logged_as_distrust(
    action: Callable[[DirectConnection], None], caplog: pytest.LogCaptureFixture
) -> None:
    for is_closed_here in (False, True):
        client = DirectClient(answer_at_once)
        state: Any = client.connection._state
        state.address, state.tls = (HUB_HOST, 443), object()
        unused: Any = None
        client.connection._setup = TunnelSetup(unused, unused, state, CLIENT)
        if is_closed_here:
            action(client.connection)
        client.disconnect()
        assert ("may not trust" in caplog.text) is not is_closed_here
        caplog.clear()


async def test_address_with_too_many_connections_gets_no_more() -> None:
    limits = ClientLimits(1000)
    clients = [DirectClient(PendingAnswer(), limits=limits) for _ in range(limits.max_per_address)]
    for client in clients:
        client.send(REQUEST)
    refused = DirectClient(answer_at_once, limits=limits)
    assert refused.transport.is_aborted
    for client in (*clients, refused):
        client.disconnect()
    assert limits._counts == {}


async def test_client_that_was_handed_over_is_not_counted_any_more() -> None:
    limits = ClientLimits(1000)
    client = DirectClient(answer_at_once, limits=limits)
    client.send(REQUEST.replace(b"GET", b"PUT"))
    await until(lambda: client.handed_over)
    assert (limits._counts, limits.close_oldest()) == ({}, False)
    client.disconnect()


async def test_long_target_is_logged_in_part() -> None:
    client = DirectClient(answer_at_once)
    client.send(head("GET", "/v2/" + "x" * 10_000, {"Host": HUB_HOST}))
    assert len(client.log_lines[0]) < 700
    client.disconnect()


async def test_client_that_does_not_read_gets_no_further_answers() -> None:
    """They would be kept in memory for it."""
    client = DirectClient(answer_at_once)
    client.connection.pause_writing()
    client.send(REQUEST * 100)
    await asyncio.sleep(0.01)
    assert client.transport.sent == b""
    client.connection.resume_writing()
    await until(lambda: client.transport.sent.count(b"\r\n\r\nbody") == 100)
    client.disconnect()
