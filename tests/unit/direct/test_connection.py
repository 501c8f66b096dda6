"""A direct connection without a socket: requests, their records, and the handover to mitmproxy."""

import asyncio
import logging
from typing import Any

import pytest
from hubcache.oci.registry import HUB_HOST
from hubcache.serve.messages import Answer, Forward, Request, Result
from hubcache.transfer.sources import BytesSource
from support.direct import REQUEST, DirectClient, PendingAnswer, answer_at_once, endless_answer, small_answer
from support.http_client import head
from support.users import until

LIMIT = 16 << 10


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
