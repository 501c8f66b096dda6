"""A reception by itself: what a client does that no real one can be made to do at the right moment."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hubcache.clients.limits import ClientLimits
from hubcache.direct import connection
from hubcache.direct.connection import DirectConnection
from hubcache.direct.writer import DirectWriter
from hubcache.oci.registry import HUB_HOST
from hubcache.serve.messages import Answer, Forward, Request, Result
from hubcache.transfer.sources import BytesSource
from support.direct import Question, Visit, always, endless, small
from support.http_client import head
from support.users import until

ASKED = head("GET", "/v2/library/app/manifests/1", {"Host": HUB_HOST})
LIMIT = 16 << 10


# -- requests


async def test_request_is_as_the_client_sent_it() -> None:
    question = Question()
    visit = Visit(question)
    visit.say(head("HEAD", "/v2/a/tags/list?n=1&ns=docker.io", {"Host": "x", "Accept": "a/b", "Authorization": "c"}))
    (request,) = question.requests
    assert (request.method, request.path, request.query) == ("HEAD", "/v2/a/tags/list", "n=1&ns=docker.io")
    assert request.headers == {"host": "x", "accept": "a/b", "authorization": "c"}
    assert (request.client, request.registry.host, request.body) == ("127.0.0.1", HUB_HOST, None)
    question.settle(small())
    await until(lambda: visit.lines)
    assert visit.transport.sent.endswith(b"Content-Length: 4\r\n\r\n")
    visit.leave()


async def test_next_request_waits_for_the_answer_to_the_one_before() -> None:
    question = Question()
    visit = Visit(question)
    visit.say(ASKED + ASKED)
    visit.say(ASKED)
    assert len(question.requests) == 1
    question.settle(small())
    await until(lambda: len(visit.lines) == 3)
    assert visit.transport.sent.count(b"\r\n\r\nbody") == 3
    visit.leave()


async def test_client_that_sends_a_lot_while_it_waits_is_not_read_from_meanwhile() -> None:
    question = Question()
    visit = Visit(question)
    visit.say(ASKED)
    visit.say(b"\0" * (LIMIT - len(ASKED)))
    assert visit.transport.reads
    visit.say(b"\0")
    assert not visit.transport.reads
    question.settle(small())
    await until(lambda: visit.taken_over)  # with what is no request
    assert visit.transport.reads
    visit.leave()


async def test_client_that_waited_is_read_from_again() -> None:
    question = Question()
    visit = Visit(question)
    many = 2 * LIMIT // len(ASKED)
    visit.say(ASKED)
    visit.say(ASKED * many)
    assert not visit.transport.reads
    question.settle(small())
    await until(lambda: len(visit.lines) == many + 1)
    assert visit.transport.reads
    visit.leave()


@pytest.mark.parametrize("is_at_once", [True, False])
async def test_defect_ends_the_connection_and_is_logged(is_at_once: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Request) -> Answer:
        if not is_at_once:
            await asyncio.sleep(0)
        raise ZeroDivisionError("a defect")

    visit = Visit(broken)
    visit.say(ASKED + ASKED)
    await until(lambda: visit.transport.is_aborted)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "hubcache: a request failed")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert (visit.transport.sent, visit.lines, visit.taken_over) == (b"", [], [])
    visit.leave()


# -- clients that leave


async def test_client_that_left_while_its_answer_was_thought_about_gives_the_source_back() -> None:
    question = Question()
    visit = Visit(question)
    visit.say(ASKED)
    visit.leave()
    answer, source = endless()
    question.settle(answer)
    await until(lambda: source.is_closed)
    await until(lambda: visit.lines)
    assert visit.lines[0].endswith("<< 200 hit broken off")
    assert visit.failures == []


async def test_client_that_left_while_its_small_answer_was_thought_about_is_sent_nothing() -> None:
    question = Question()
    visit = Visit(question)
    visit.say(ASKED + ASKED)
    visit.leave()
    question.settle(small())
    await until(lambda: visit.lines)
    assert visit.transport.sent == b""
    assert len(question.requests) == 1


async def test_client_that_leaves_during_a_body_gives_the_source_back(caplog: pytest.LogCaptureFixture) -> None:
    answer, source = endless()
    question = Question()
    visit = Visit(question)
    visit.reception.pause_writing()
    visit.say(ASKED)
    question.settle(answer)
    await until(lambda: visit.transport.sent)
    visit.leave()
    await until(lambda: source.is_closed)
    await asyncio.sleep(0)
    assert (visit.failures, caplog.records) == ([], [])
    assert [line.partition(" << ")[2] for line in visit.lines] == ["200 hit broken off"]


async def test_its_socket_is_let_go_when_a_client_leaves_while_its_source_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(BytesSource):
        closing = False

        async def close(self) -> None:
            self.closing = True
            await asyncio.Event().wait()

    source, question = Slow(b"body"), Question()
    visit = Visit(question)
    left: list[DirectWriter] = []
    monkeypatch.setattr(DirectWriter, "leave", lambda sending: left.append(sending))
    visit.say(ASKED)
    question.settle(Answer(200, {}, Result.HIT, source=source, length=4))
    await until(lambda: source.closing)
    assert left == []
    visit.leave()
    await until(lambda: left)


# -- clients that dawdle


async def test_client_that_does_not_read_its_answers_for_too_long_is_left(caplog: pytest.LogCaptureFixture) -> None:
    visit = Visit(always, patience=0.1)
    visit.reception.pause_writing()
    visit.say(ASKED * 2)
    await until(lambda: visit.transport.is_aborted)
    visit.leave()
    await until(lambda: visit.lines)
    assert (visit.transport.sent, len(visit.lines), caplog.records) == (b"", 1, [])


async def test_body_waits_while_the_client_does_not_read() -> None:
    answer, source = endless()
    question = Question()
    visit = Visit(question)
    visit.reception.pause_writing()
    visit.say(ASKED)
    question.settle(answer)
    await until(lambda: visit.transport.sent)
    for _ in range(10):
        await asyncio.sleep(0)
    assert visit.transport.sent.endswith(b"\r\n\r\n")
    visit.reception.resume_writing()
    await until(lambda: visit.transport.sent.endswith(b"x"))
    visit.leave()
    await until(lambda: source.is_closed)


async def test_client_that_does_not_read_its_body_for_too_long_is_left() -> None:
    answer, source = endless()
    question = Question()
    visit = Visit(question, patience=0.1)
    visit.reception.pause_writing()
    visit.say(ASKED)
    question.settle(answer)
    await until(lambda: source.is_closed)
    assert visit.transport.is_aborted
    assert visit.failures == []
    visit.leave()


async def test_client_that_is_silent_is_left_and_one_that_waits_is_not() -> None:
    question = Question()
    silent, later, waiting = Visit(always, patience=0.1), Visit(always, patience=0.2), Visit(question, patience=0.1)
    waiting.say(ASKED)
    await until(lambda: silent.transport.is_aborted and later.transport.is_aborted)
    silent.leave()
    later.leave()
    assert not waiting.transport.is_closing()
    question.settle(small())
    await until(lambda: waiting.transport.is_aborted)
    assert len(waiting.lines) == 1
    waiting.leave()


async def test_head_has_its_time_and_no_byte_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    visit, question = Visit(always), Question()
    waiting = Visit(question)
    waiting.say(ASKED)
    begun = asyncio.get_running_loop().time()
    while not visit.transport.is_aborted:
        visit.say(b"G")
        await asyncio.sleep(0.01)
    assert 0.2 <= asyncio.get_running_loop().time() - begun < 5
    assert not waiting.transport.is_closing()
    question.settle(small())
    await until(lambda: waiting.lines)
    other = Visit(always)
    await until(lambda: other.transport.is_aborted)
    assert not waiting.transport.is_closing()  # an idle connection has its own time
    waiting.say(ASKED[:10])
    await until(lambda: waiting.transport.is_aborted)
    for each in (visit, waiting, other):
        each.leave()
    assert (visit.taken_over, len(waiting.lines)) == ([], 1)


@pytest.mark.parametrize("head", [ASKED, b"\r\n" + ASKED, ASKED.replace(b"GET", b"PUT")])
async def test_head_is_waited_for(head: bytes) -> None:
    visit = Visit(always)
    for byte in head[:-1]:
        visit.say(bytes([byte]))
    await asyncio.sleep(0)
    assert (visit.transport.sent, visit.taken_over) == (b"", [])
    visit.say(head[-1:])
    await until(lambda: visit.lines or visit.taken_over)
    visit.leave()


async def test_head_that_is_longer_than_any_is_mitmproxys_to_refuse() -> None:
    visit = Visit(always)
    visit.say(b"G" * (64 << 10))
    await asyncio.sleep(0)
    assert visit.taken_over == []
    visit.say(b"G")
    await until(lambda: visit.taken_over)
    visit.leave()


async def test_idle_client_makes_room_and_one_that_waits_for_its_answer_does_not() -> None:
    clients, question = ClientLimits(1000), Question()
    busy, idle, later = Visit(question, clients=clients), Visit(always, clients=clients), Visit(always, clients=clients)
    for visit in (busy, idle, later):
        visit.say(ASKED)
    assert clients.relieve()
    assert [visit.transport.is_aborted for visit in (busy, idle, later)] == [False, True, False]
    question.settle(small())
    await until(lambda: busy.lines)
    assert clients.relieve()
    assert clients.relieve()
    assert not clients.relieve()
    assert [visit.transport.is_aborted for visit in (busy, idle, later)] == [True, True, True]
    for visit in (busy, idle, later):
        visit.leave()


@pytest.mark.parametrize("leave", [DirectConnection.dismiss, DirectConnection.leave, DirectConnection.cut])
async def test_client_that_is_left_during_its_handshake_is_not_said_to_distrust(
    leave: Callable[[DirectConnection], None], caplog: pytest.LogCaptureFixture
) -> None:
    for is_left in (False, True):
        visit = Visit(always)
        visit.reception._said.address = (HUB_HOST, 443)
        visit.reception._step = visit.reception._secure
        if is_left:
            leave(visit.reception)
        visit.leave()
        assert ("may not trust" in caplog.text) is not is_left
        caplog.clear()


async def test_address_that_has_too_many_connections_gets_no_more() -> None:
    clients = ClientLimits(1000)
    visits = [Visit(Question(), clients=clients) for _ in range(clients.share)]
    for visit in visits:
        visit.say(ASKED)
    refused = Visit(always, clients=clients)
    assert refused.transport.is_aborted
    for visit in (*visits, refused):
        visit.leave()
    assert clients._counts == {}


async def test_client_that_is_handed_over_is_counted_no_more() -> None:
    clients = ClientLimits(1000)
    visit = Visit(always, clients=clients)
    visit.say(ASKED.replace(b"GET", b"PUT"))
    await until(lambda: visit.taken_over)
    assert (clients._counts, clients.relieve()) == ({}, False)
    visit.leave()


async def test_long_target_is_told_in_part() -> None:
    visit = Visit(always)
    visit.say(head("GET", "/v2/" + "x" * 10_000, {"Host": HUB_HOST}))
    assert len(visit.lines[0]) < 700
    visit.leave()


async def test_client_that_does_not_read_gets_no_more_answers() -> None:
    """Else what it asks for would be kept for it in memory."""
    visit = Visit(always)
    visit.reception.pause_writing()
    visit.say(ASKED * 100)
    await asyncio.sleep(0.01)
    assert visit.transport.sent == b""
    visit.reception.resume_writing()
    await until(lambda: visit.transport.sent.count(b"\r\n\r\nbody") == 100)
    visit.leave()


# -- what mitmproxy takes over


async def test_client_that_left_while_its_request_was_thought_about_is_not_handed_over() -> None:
    question = Question()
    visit = Visit(question)
    visit.say(ASKED)
    visit.leave()
    question.settle(Forward(None))
    await asyncio.sleep(0.01)
    assert visit.taken_over == []


@pytest.mark.parametrize("is_done_at_once", [True, False])
async def test_request_that_is_passed_on_is_read_again_by_mitmproxy(is_done_at_once: bool) -> None:
    question = Question()
    visit = Visit(question)
    if is_done_at_once:
        question.settle(Forward(None))
    visit.say(ASKED + b"more")
    if not is_done_at_once:
        visit.say(b" and more")
        question.settle(Forward(None))
    await until(lambda: visit.taken_over)
    successor: Any = visit.transport.get_protocol()
    successor.data_received(b".")
    successor.eof_received()
    expected = ASKED + (b"more." if is_done_at_once else b"more and more.")
    assert await visit.taken() == expected
    assert (visit.lines, visit.transport.sent, len(question.requests)) == ([], b"", 1)
    visit.leave()


async def test_client_that_says_no_more_is_left_where_its_request_is_to_be_passed_on() -> None:
    """As mitmproxy does it."""
    question = Question()
    visit = Visit(question)
    visit.say(ASKED)
    assert visit.reception.eof_received()
    question.settle(Forward(None))
    await until(visit.transport.is_closing)
    assert visit.taken_over == []
    visit.leave()


async def test_mitmproxy_hears_that_the_client_does_not_read() -> None:
    visit = Visit(always)
    visit.say(ASKED)
    visit.reception.pause_writing()
    visit.say(b"PUT / HTTP/1.1\r\n\r\n")
    successor: Any = visit.transport.get_protocol()
    assert successor._paused
    await until(lambda: visit.taken_over)
    visit.leave()


async def test_client_that_was_taken_over_is_not_left_for_its_silence() -> None:
    visit = Visit(always, patience=0.1)
    visit.say(b"PUT / HTTP/1.1\r\n\r\n")
    other = Visit(always, patience=0.2)
    await until(lambda: other.transport.is_aborted)
    assert not visit.transport.is_closing()
    assert len(visit.taken_over) == 1
    other.leave()
    visit.leave()
