"""The pump: every byte arrives, once, and only at the client it is for; a broken body is never made to look whole."""

import asyncio
import contextlib

import pytest
from hubcache.oci.errors import BadUpstream
from hubcache.transfer import pump as pump_module
from hubcache.transfer.pump import Delivery
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pump import Pieces, Station, settle, station_fixture

END = b"0\r\n\r\n"

station = station_fixture()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_the_body_arrives_as_it_is_whatever_its_pieces(pieces: list[bytes]) -> None:
    async def run() -> None:
        station = Station()
        await station.pump.start()
        source = Pieces(*pieces)
        ticket, delivery = station.pump.admit(source)
        assert await station.receive(ticket, delivery) == (b"".join(pieces), True)
        assert station.sent == [("store", len(piece)) for piece in pieces]
        assert station.failed == []
        await settle(lambda: source.closed == 1)
        await station.pump.close()
        assert source.closed == 1

    asyncio.run(run())


async def test_big_chunks_cross_the_loopback_as_one_byte_each(station: Station) -> None:
    ticket, delivery = station.pump.admit(Pieces(b"x" * 500_000, b"y" * 500_000))
    reader, writer = await station.ask(ticket)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(6) == b"1\r\nx\r\n"
    assert delivery.take(b"x") == b"x" * 500_000
    assert await reader.read(1000) == b"1\r\nx\r\n" + END
    assert delivery.take(b"x") == b"y" * 500_000
    writer.close()


async def test_no_further_chunk_is_offered_before_the_one_before_was_taken(station: Station) -> None:
    source = Pieces(*(bytes([number]) for number in range(10)))
    ticket, delivery = station.pump.admit(source)
    reader, writer = await station.ask(ticket)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(6) == b"1\r\nx\r\n"
    await asyncio.sleep(0.05)
    assert source.reads <= 2
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await reader.readexactly(1)
    assert delivery.take(b"x") == b"\x00"
    assert await reader.readexactly(6) == b"1\r\nx\r\n"
    writer.close()


async def test_the_first_chunk_does_not_wait_for_the_second(station: Station) -> None:
    second = asyncio.Event()
    ticket, delivery = station.pump.admit(Pieces(b"first", second, b"second"))
    receiving = asyncio.ensure_future(station.receive(ticket, delivery))
    await settle(lambda: station.sent == [("store", 5)])
    second.set()
    assert await receiving == (b"firstsecond", True)


@pytest.mark.parametrize("before", [(), (b"one",), (b"one", b"two")])
async def test_a_source_that_breaks_leaves_the_coding_unfinished(station: Station, before: tuple[bytes, ...]) -> None:
    error = BadUpstream("content does not match its digest")
    source = Pieces(*before, error)
    ticket, delivery = station.pump.admit(source)
    body, whole = await station.receive(ticket, delivery)
    assert not whole
    assert b"".join(before).startswith(body)
    assert station.failed == [error]
    await settle(lambda: source.closed == 1)


async def test_a_stranger_without_a_ticket_gets_nothing(station: Station) -> None:
    source = Pieces(b"secret")
    ticket, _ = station.pump.admit(source)
    for path in ("/", "/x", ticket[:-1], ticket + "x", ticket.lower() + "?", "*"):
        reader, writer = await station.ask(path)
        assert await reader.read() == b""
        writer.close()
    assert (source.reads, source.closed) == (0, 0)


@pytest.mark.parametrize("request_text", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\x00 \xff \xff\r\n\r\n", b"x" * 200_000])
async def test_nonsense_is_answered_with_nothing_and_breaks_nothing(station: Station, request_text: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", station.pump.port)
    writer.write(request_text)
    with contextlib.suppress(ConnectionError):  # closed with our bytes unread
        assert await reader.read() == b""
    writer.close()
    ticket, delivery = station.pump.admit(Pieces(b"fine"))
    assert await station.receive(ticket, delivery) == (b"fine", True)


async def test_a_ticket_is_good_for_one_time(station: Station) -> None:
    ticket, delivery = station.pump.admit(Pieces(b"secret"))
    assert await station.receive(ticket, delivery) == (b"secret", True)
    reader, writer = await station.ask(ticket)
    assert await reader.read() == b""
    writer.close()


async def test_tickets_are_long_and_never_the_same(station: Station) -> None:
    tickets = {station.pump.admit(Pieces())[0] for _ in range(100)}
    assert len(tickets) == 100
    assert min(map(len, tickets)) > 20


async def test_a_ticket_that_nobody_comes_for_expires_and_its_source_is_closed(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "_TICKET_SECONDS", 0.02)
    source = Pieces(b"secret")
    ticket, _ = station.pump.admit(source)
    await settle(lambda: source.closed == 1)
    reader, writer = await station.ask(ticket)
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("waiting", ["for the source", "for the client"])
async def test_a_client_that_leaves_ends_the_delivery_and_closes_the_source(station: Station, waiting: str) -> None:
    source = Pieces(b"one", asyncio.Event() if waiting == "for the source" else b"two", b"three", b"four")
    ticket, _ = station.pump.admit(source)
    reader, writer = await station.ask(ticket)
    await reader.readuntil(b"x\r\n")
    writer.close()
    await settle(lambda: source.closed == 1)
    assert station.failed == []


async def test_closing_the_pump_breaks_off_what_runs_and_closes_all_sources(station: Station) -> None:
    waiting, running = Pieces(b"x"), Pieces(b"one", asyncio.Event(), b"two")
    station.pump.admit(waiting)
    ticket, delivery = station.pump.admit(running)
    receiving = asyncio.ensure_future(station.receive(ticket, delivery))
    await settle(lambda: station.sent != [])
    await station.pump.close()
    assert await receiving == (b"one", False)
    assert (waiting.closed, running.closed) == (1, 1)
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", station.pump.port)


async def test_many_bodies_at_once_do_not_mix(station: Station) -> None:
    async def one(number: int) -> None:
        pieces = [f"{number}:{part};".encode() for part in range(20)]
        ticket, delivery = station.pump.admit(Pieces(*pieces))
        assert await station.receive(ticket, delivery) == (b"".join(pieces), True)

    await asyncio.gather(*(one(number) for number in range(20)))


def test_taking_never_raises_and_the_end_of_the_stream_takes_nothing() -> None:
    counted: list[tuple[str, int]] = []
    delivery = Delivery(Pieces(), lambda origin, count: counted.append((origin, count)))
    assert delivery.take(b"") == b""
    assert counted == []
    assert delivery.take(b"x") == b""
    delivery.offer(b"chunk")
    assert delivery.take(b"x") == b"chunk"
    assert delivery.take(b"x") == b""


async def test_a_body_whose_client_left_before_mitmproxy_came_for_it_is_not_read(station: Station) -> None:
    """Its source is closed: the descriptor may by now be that of another file."""
    source = Pieces(b"data")
    path, delivery = station.pump.admit(source)
    await delivery.close()
    assert await station.receive(path, delivery) == (b"", False)
    assert (source.reads, source.closed) == (0, 1)
    assert (station.sent, station.failed) == ([], [])


async def test_a_small_body_is_given_at_once_and_counted(station: Station) -> None:
    source = Pieces(b"data")
    assert await station.pump.whole(source) == b"data"
    assert (source.closed, station.sent) == (1, [("store", 4)])


async def test_a_small_body_that_cannot_be_read_is_left_to_the_pump(station: Station) -> None:
    source = Pieces(BadUpstream("no"))
    assert await station.pump.whole(source) is None
    assert (source.closed, station.sent) == (0, [])
