"""The straight way: bodies arrive past mitmproxy, poured where they are on a file, and others are not kept waiting."""

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest
from hubcache.oci.errors import BadUpstream, HubcacheError
from hubcache.transfer.sources import CHUNK, ReadInto
from support.pump import Pieces, Station, settle, station_fixture

station = station_fixture()


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

    def pour(self, take: ReadInto, most: int) -> int:
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

    async def file_reader(self) -> ReadInto | None:
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
