"""The pump: every byte arrives, once, and only at the client it is for; a broken body is never made to look whole."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from hubcache.oci.errors import BadUpstream, HubcacheError
from hubcache.transfer import pump as pump_module
from hubcache.transfer.pump import Delivery, Pump
from hubcache.transfer.sources import CHUNK, Take
from hypothesis import given, settings
from hypothesis import strategies as st

END = b"0\r\n\r\n"


class Pieces:
    """A source that gives these pieces; one that is an exception is raised, one that is an event waited for."""

    origin = "store"

    def __init__(self, *pieces: bytes | Exception | asyncio.Event | None) -> None:
        self._pieces = list(pieces)
        self.reads = 0
        self.closed = 0

    async def read(self, most: int = CHUNK) -> bytes:
        self.reads += 1
        while self._pieces:
            piece = self._pieces.pop(0)
            if isinstance(piece, Exception):
                self._pieces.insert(0, piece)
                raise piece
            if isinstance(piece, asyncio.Event):
                await piece.wait()
                continue
            return piece
        return b""

    async def on_file(self) -> Take | None:
        return None

    @property
    def finished(self) -> bool:
        return not self._pieces

    async def close(self) -> None:
        self.closed += 1


@dataclass
class Station:
    """A running pump and what it reported."""

    sent: list[tuple[str, int]] = field(default_factory=list)
    failed: list[HubcacheError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pump = Pump(lambda origin, count: self.sent.append((origin, count)), self.failed.append)

    async def ask(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.pump.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return reader, writer

    async def receive(self, path: str, delivery: Delivery, pause: Callable[[], float] = float) -> tuple[bytes, bool]:
        """Play mitmproxy: swap each byte of the body by `take`. Returns the body, and whether it ended properly."""
        reader, writer = await self.ask(path)
        body: list[bytes] = []
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Transfer-Encoding: chunked" in head
            while True:
                size = int(await reader.readuntil(b"\r\n"), 16)
                data = (await reader.readexactly(size + 2))[:-2]
                if size == 0:
                    return b"".join(body), True
                for byte in data:
                    await asyncio.sleep(pause())
                    body.append(delivery.take(bytes([byte])))
        except asyncio.IncompleteReadError:
            return b"".join(body), False
        finally:
            writer.close()


@pytest.fixture
async def station() -> AsyncIterator[Station]:
    running = Station()
    await running.pump.start()
    yield running
    await running.pump.close()


async def settle(condition: Callable[[], bool]) -> None:
    """Give the pump's tasks up to a second."""
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen within a second")


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


# -- the straight way ------------------------------------------------------------------------------------------------


@dataclass
class Way:
    """A client that takes everything, until it is `gone`."""

    chunk: int = CHUNK
    gone: bool = False
    closed: bool = False
    events: list[bytes | str] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        if self.gone:
            raise ConnectionResetError
        self.events.append(data)

    def pour(self, take: Take, most: int) -> int:
        buffer = bytearray(most)
        count = take(memoryview(buffer))
        self.write(bytes(buffer[:count]))
        return count

    async def drain(self) -> None:
        self.events.append("waited")

    def close(self) -> None:
        self.closed = True


async def test_a_body_goes_straight_piece_by_piece_and_nothing_is_waited_for_after_it(station: Station) -> None:
    source, way = Pieces(b"one", b"two"), Way()
    await station.pump.send(b"head", source, way)
    assert way.events == [b"head", "waited", b"one", "waited", b"two"]
    assert station.sent == [("store", 3), ("store", 3)]
    assert (source.closed, way.closed) == (1, False)


class Filed(Pieces):
    """A source whose pieces are on a file, up to one that is `None`."""

    async def on_file(self) -> Take | None:
        return self._take if self._pieces[0] is not None else self._pieces.pop(0)

    def _take(self, buffer: memoryview) -> int:
        piece = self._pieces[0]
        assert isinstance(piece, bytes)
        count = min(len(buffer), len(piece))
        buffer[:count], self._pieces[0] = piece[:count], piece[count:]
        if not self._pieces[0]:
            self._pieces.pop(0)
        return count


async def test_what_is_on_a_file_is_poured_and_the_rest_is_read(station: Station) -> None:
    source, way = Filed(b"1234567", None, b"89"), Way(chunk=4)
    await station.pump.send(b"head", source, way)
    assert way.events == [b"head", "waited", b"1234", "waited", b"567", "waited", b"89"]
    assert [count for _, count in station.sent] == [4, 3, 2]
    assert (source.reads, source.closed, way.closed) == (1, 1, False)


@pytest.mark.parametrize("error", [BadUpstream("short"), ValueError("a defect")])
async def test_a_body_that_breaks_off_on_the_straight_way_ends_the_connection(
    station: Station, error: Exception
) -> None:
    source, way = Pieces(b"one", error), Way()
    with contextlib.suppress(ValueError):
        await station.pump.send(b"head", source, way)
    assert way.closed
    assert source.closed == 1
    assert station.failed == [error for _ in (1,) if isinstance(error, HubcacheError)]


async def test_a_client_that_leaves_the_straight_way_is_no_failure(station: Station) -> None:
    source, way = Pieces(b"one", b"two"), Way(gone=True)
    await station.pump.send(b"head", source, way)
    assert (way.closed, source.closed, station.failed, station.sent) == (True, 1, [], [])


async def test_closing_the_pump_breaks_off_what_goes_straight(station: Station) -> None:
    source, way = Pieces(b"one", asyncio.Event(), b"two"), Way()
    sending = asyncio.ensure_future(station.pump.send(b"head", source, way))
    await settle(lambda: b"one" in way.events)
    await station.pump.close()
    assert sending.cancelled()
    assert (way.closed, source.closed) == (True, 1)


async def test_client_that_takes_whatever_it_is_sent_does_not_keep_all_others_waiting(station: Station) -> None:
    waited = 0

    async def other() -> None:
        nonlocal waited
        while True:
            await asyncio.sleep(0)
            waited += 1

    class Ready(Way):
        async def drain(self) -> None:
            pass

    looking = asyncio.ensure_future(other())
    await station.pump.send(b"head", Pieces(*[b"x"] * 40), Ready())
    looking.cancel()
    assert waited >= 38


async def test_chunks_get_smaller_when_there_are_many_bodies(station: Station) -> None:
    asked: list[int] = []

    class Measured(Pieces):
        async def read(self, most: int = CHUNK) -> bytes:
            asked.append(most)
            return await super().read(most)

    for others in (0, 50, 50, 900):
        station.pump._connections |= {asyncio.ensure_future(asyncio.sleep(60)) for _ in range(others)}
        await station.pump.send(b"", Measured(b"x"), Way(512 << 10))
        await station.pump.send(b"", Measured(b"x"), Way(1000))
    assert asked == [512 << 10, 1000, 512 << 10, 1000, 256 << 10, 1000, 64 << 10, 1000]
