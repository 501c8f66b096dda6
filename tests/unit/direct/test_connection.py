"""A direct connection without a socket: events in an order that a real client cannot be made to produce."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hubcache.clients.limits import ClientLimits
from hubcache.direct import connection
from hubcache.direct.connection import DirectConnection
from hubcache.direct.tunnel_setup import TunnelSetup
from hubcache.direct.writer import DirectWriter
from hubcache.oci.registry import HUB_HOST
from hubcache.serve.messages import Answer, Forward, Request, Result
from hubcache.transfer.sources import BytesSource
from support.direct import CLIENT, DirectClient, PendingAnswer, answer_at_once, endless_answer, small_answer
from support.http_client import head
from support.users import until

REQUEST = head("GET", "/v2/library/app/manifests/1", {"Host": HUB_HOST})
LIMIT = 16 << 10


# -- requests


async def test_request_is_as_the_client_sent_it() -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.send(head("HEAD", "/v2/a/tags/list?n=1&ns=docker.io", {"Host": "x", "Accept": "a/b", "Authorization": "c"}))
    (request,) = pending.requests
    assert (request.method, request.path, request.query) == ("HEAD", "/v2/a/tags/list", "n=1&ns=docker.io")
    assert request.headers == {"host": "x", "accept": "a/b", "authorization": "c"}
    assert (request.client, request.registry.host, request.body) == ("127.0.0.1", HUB_HOST, None)
    pending.set(small_answer())
    await until(lambda: client.log_lines)
    assert client.transport.sent.endswith(b"Content-Length: 4\r\n\r\n")
    client.disconnect()


async def test_next_request_waits_for_the_answer_to_the_one_before() -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.send(REQUEST + REQUEST)
    client.send(REQUEST)
    assert len(pending.requests) == 1
    pending.set(small_answer())
    await until(lambda: len(client.log_lines) == 3)
    assert client.transport.sent.count(b"\r\n\r\nbody") == 3
    client.disconnect()


async def test_reading_pauses_when_a_waiting_client_sends_much() -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.send(REQUEST)
    client.send(b"\0" * (LIMIT - len(REQUEST)))
    assert client.transport.reads
    client.send(b"\0")
    assert not client.transport.reads
    pending.set(small_answer())
    await until(lambda: client.handed_over)  # with bytes that are no request
    assert client.transport.reads
    client.disconnect()


async def test_reading_resumes_after_the_answer() -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    many = 2 * LIMIT // len(REQUEST)
    client.send(REQUEST)
    client.send(REQUEST * many)
    assert not client.transport.reads
    pending.set(small_answer())
    await until(lambda: len(client.log_lines) == many + 1)
    assert client.transport.reads
    client.disconnect()


@pytest.mark.parametrize("is_at_once", [True, False])
async def test_exception_ends_the_connection_and_is_logged(is_at_once: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Request) -> Answer:
        if not is_at_once:
            await asyncio.sleep(0)
        raise ZeroDivisionError("a defect")

    client = DirectClient(broken)
    client.send(REQUEST + REQUEST)
    await until(lambda: client.transport.is_aborted)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "hubcache: a request failed")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert (client.transport.sent, client.log_lines, client.handed_over) == (b"", [], [])
    client.disconnect()


# -- records of requests


async def test_answer_from_memory_is_recorded() -> None:
    client = DirectClient(answer_at_once)
    client.send(REQUEST)
    (found,) = client.served
    assert (found.client, found.repository, found.reference) == ("127.0.0.1", "library/app", "1")
    assert (found.sent, found.size, found.is_complete, found.status) == (4, 4, True, 200)
    assert 0 <= found.first_byte <= found.duration < 60
    client.disconnect()


async def test_answer_from_a_source_is_recorded() -> None:
    async def answer(_: Request) -> Answer:
        return Answer(200, {}, Result.MISS, source=BytesSource(b"x" * 1000), length=1000, size=1000, kind="blob")

    client = DirectClient(answer)
    client.send(REQUEST)
    await until(lambda: client.served)
    (found,) = client.served
    assert (found.sent, found.size, found.is_complete, found.result) == (1000, 1000, True, Result.MISS)
    client.disconnect()


async def test_answer_that_the_client_did_not_wait_for_is_recorded_as_incomplete() -> None:
    async def answer(_: Request) -> Answer:
        return endless_answer()[0]

    client = DirectClient(answer)
    client.send(REQUEST)
    await until(lambda: client.transport.sent.endswith(b"xx"))
    client.disconnect()
    await until(lambda: client.served)
    (found,) = client.served
    assert (found.is_complete, found.error, found.size) == (False, "", 1 << 40)
    assert 0 < found.sent < found.size


async def test_request_that_is_aborted_before_its_answer_is_recorded_as_failed() -> None:
    client = DirectClient(PendingAnswer())
    client.send(REQUEST)
    client.connection.abort()
    await until(lambda: client.served)
    assert (client.served[0].is_complete, client.served[0].status) == (False, 0)


async def test_request_that_is_handed_over_is_recorded_by_mitmproxy_alone() -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.send(REQUEST)
    forward = Forward("Bearer own")
    pending.set(forward)
    await until(lambda: client.handed_over)
    assert client.served == []
    assert forward.decision_seconds > 0
    client.disconnect()


# -- limits that leave


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


# -- limits that dawdle


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


# -- handover to mitmproxy


async def test_client_that_disconnected_before_the_decision_is_not_handed_over() -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.send(REQUEST)
    client.disconnect()
    pending.set(Forward(None))
    await asyncio.sleep(0.01)
    assert client.handed_over == []


@pytest.mark.parametrize("is_done_at_once", [True, False])
async def test_request_that_is_passed_on_is_read_again_by_mitmproxy(is_done_at_once: bool) -> None:
    pending = PendingAnswer()
    client = DirectClient(pending)
    if is_done_at_once:
        pending.set(Forward(None))
    client.send(REQUEST + b"more")
    if not is_done_at_once:
        client.send(b" and more")
        pending.set(Forward(None))
    await until(lambda: client.handed_over)
    successor: Any = client.transport.get_protocol()
    successor.data_received(b".")
    successor.eof_received()
    expected = REQUEST + (b"more." if is_done_at_once else b"more and more.")
    assert await client.read_by_mitmproxy() == expected
    assert (client.log_lines, client.transport.sent, len(pending.requests)) == ([], b"", 1)
    client.disconnect()


async def test_half_closed_connection_is_closed_when_its_request_is_to_be_passed_on() -> None:
    """As mitmproxy does."""
    pending = PendingAnswer()
    client = DirectClient(pending)
    client.send(REQUEST)
    assert client.connection.eof_received()
    pending.set(Forward(None))
    await until(client.transport.is_closing)
    assert client.handed_over == []
    client.disconnect()


async def test_mitmproxy_waits_when_the_client_does_not_read() -> None:
    client = DirectClient(answer_at_once)
    client.send(REQUEST)
    client.connection.pause_writing()
    client.send(b"PUT / HTTP/1.1\r\n\r\n")
    successor: Any = client.transport.get_protocol()
    assert successor._paused
    await until(lambda: client.handed_over)
    client.disconnect()


async def test_client_that_was_handed_over_is_not_disconnected_for_its_silence() -> None:
    client = DirectClient(answer_at_once, idle_seconds=0.1)
    client.send(b"PUT / HTTP/1.1\r\n\r\n")
    other = DirectClient(answer_at_once, idle_seconds=0.2)
    await until(lambda: other.transport.is_aborted)
    assert not client.transport.is_closing()
    assert len(client.handed_over) == 1
    other.disconnect()
    client.disconnect()
