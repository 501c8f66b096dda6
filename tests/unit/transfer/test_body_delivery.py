"""Body delivery: bodies are written at the client's pace, and other clients get their turn."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from hubcache.oci.errors import BadUpstream, HubcacheError
from hubcache.transfer import body_delivery
from hubcache.transfer.active_bodies import ActiveBodies
from hubcache.transfer.body_delivery import BodyDelivery
from hubcache.transfer.body_progress import BodyProgress
from hubcache.transfer.file_part import FilePart, SendfileUnsupported
from hubcache.transfer.sources import CHUNK
from support.bodies import Pieces, Reports, wait_for


@dataclass
class DeliveryHarness(Reports):
    """A delivery and what it reported."""

    def __post_init__(self) -> None:
        self.active = ActiveBodies()
        self.delivery = BodyDelivery(self.active, self.on_sent, self.failed.append)


@pytest.fixture
async def harness() -> AsyncIterator[DeliveryHarness]:
    running = DeliveryHarness()
    yield running
    await running.delivery.close()


@dataclass
class Client:
    """A writer whose client accepts everything until it has `disconnected`."""

    chunk_size: int = CHUNK
    disconnected: bool = False
    closed: bool = False
    events: list[bytes | str] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        if self.disconnected:
            raise ConnectionResetError
        self.events.append(data)

    def write_from(self, part: FilePart, most: int, taken: Callable[[int], None]) -> None:
        buffer = bytearray(most)
        count = part.read_into(memoryview(buffer))
        self.write(bytes(buffer[:count]))
        taken(count)

    async def drain(self) -> None:
        self.events.append("drained")

    def close(self) -> None:
        self.closed = True


async def test_body_is_written_piece_by_piece_without_a_wait_after_the_last(harness: DeliveryHarness) -> None:
    source, client = Pieces(b"one", b"two"), Client()
    await harness.delivery.send(b"head", source, client)
    assert client.events == [b"head", "drained", b"one", "drained", b"two"]
    assert harness.sent == [("store", 6)]
    assert (source.closed, client.closed, harness.active.count) == (1, False, 0)


class PiecesOnFile(Pieces):
    """A source whose pieces are in a file, up to the first that is `None`; those after it are in memory."""

    async def file_part(self) -> FilePart | None:
        return self if self._pieces[0] is not None else self._pieces.pop(0)

    def send_to(self, socket: int, most: int) -> int:
        raise SendfileUnsupported

    def read_into(self, buffer: memoryview) -> int:
        piece = self._pieces[0]
        assert isinstance(piece, bytes)
        count = min(len(buffer), len(piece))
        buffer[:count], self._pieces[0] = piece[:count], piece[count:]
        if not self._pieces[0]:
            self._pieces.pop(0)
        return count


async def test_bytes_in_a_file_are_read_by_the_writer_and_the_rest_is_written(harness: DeliveryHarness) -> None:
    source, client = PiecesOnFile(b"1234567", None, b"89"), Client(chunk_size=4)
    await harness.delivery.send(b"head", source, client)
    assert client.events == [b"head", "drained", b"1234", "drained", b"567", "drained", b"89"]
    assert harness.sent == [("store", 9)]
    assert (source.reads, source.closed, client.closed) == (1, 1, False)


@pytest.mark.parametrize("error", [BadUpstream("short"), ValueError("a defect")])
async def test_body_that_is_cut_short_ends_the_connection(harness: DeliveryHarness, error: Exception) -> None:
    source, client = Pieces(b"one", error), Client()
    with contextlib.suppress(ValueError):
        await harness.delivery.send(b"head", source, client)
    assert client.closed
    assert source.closed == 1
    assert harness.failed == [error for _ in (1,) if isinstance(error, HubcacheError)]


async def test_disconnect_of_the_client_is_no_failure(harness: DeliveryHarness) -> None:
    source, client = Pieces(b"one", b"two"), Client(disconnected=True)
    await harness.delivery.send(b"head", source, client)
    assert (client.closed, source.closed, harness.failed, harness.sent) == (True, 1, [], [])


async def test_bytes_that_were_taken_before_a_disconnect_are_counted(harness: DeliveryHarness) -> None:
    class Disconnecting(Client):
        def write_from(self, part: FilePart, most: int, taken: Callable[[int], None]) -> None:
            super().write_from(part, most, taken)
            raise ConnectionResetError

    source, client, progress = PiecesOnFile(b"1234567"), Disconnecting(chunk_size=4), BodyProgress()
    await harness.delivery.send(b"head", source, client, progress)
    assert harness.sent == [("store", 4)]
    assert (progress.sent, progress.is_complete, client.closed) == (4, False, True)


async def test_bytes_of_a_running_body_are_counted_before_its_end(
    harness: DeliveryHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while no bytes can be read or written."""
    monkeypatch.setattr(body_delivery, "COUNT_SECONDS", 0.01)
    for _ in range(2):  # the second begins after the first has ended
        harness.sent.clear()
        rest = asyncio.Event()
        sending = asyncio.ensure_future(harness.delivery.send(b"head", Pieces(b"one", rest, b"three"), Client()))
        await wait_for(lambda: harness.sent == [("store", 3)])
        assert not sending.done()
        rest.set()
        await sending
        assert harness.sent == [("store", 3), ("store", 5)]
        await wait_for(lambda: harness.delivery._report_timer is None)


async def test_close_cancels_running_deliveries(harness: DeliveryHarness) -> None:
    source, client = Pieces(b"one", asyncio.Event(), b"two"), Client()
    sending = asyncio.ensure_future(harness.delivery.send(b"head", source, client))
    await wait_for(lambda: b"one" in client.events)
    await harness.delivery.close()
    assert sending.cancelled()
    assert (client.closed, source.closed) == (True, 1)


async def test_client_that_accepts_everything_at_once_does_not_block_others(harness: DeliveryHarness) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    class Ready(Client):
        async def drain(self) -> None:
            pass

    counting = asyncio.ensure_future(other())
    await harness.delivery.send(b"head", Pieces(*[b"x"] * 40), Ready())
    counting.cancel()
    assert turns >= 38


async def test_chunks_are_smaller_when_many_bodies_are_active(harness: DeliveryHarness) -> None:
    requested: list[int] = []

    class Measured(Pieces):
        async def read(self, most: int = CHUNK) -> bytes:
            requested.append(most)
            return await super().read(most)

    with contextlib.ExitStack() as others:
        for count in (0, 50, 50, 900):
            for _ in range(count):
                others.enter_context(harness.active.counted())
            await harness.delivery.send(b"", Measured(b"x"), Client(512 << 10))
            await harness.delivery.send(b"", Measured(b"x"), Client(1000))
    assert requested == [512 << 10, 1000, 512 << 10, 1000, 256 << 10, 1000, 64 << 10, 1000]
