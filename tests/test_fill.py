"""Fills: one fetch for all, resumed where it broke, verified before anybody has the last byte, stored or not at all."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, BlobUnknown, HubcacheError, StorageError, TooManyRequests, Unavailable
from hubcache.store.ledger import on_disk
from hubcache.store.room import ALLOWANCE
from hubcache.store.store import Store
from hubcache.transfer import fill as fill_module
from hubcache.transfer import http as http_module
from hubcache.transfer.fill import Fill, Fills
from hubcache.transfer.sources import FillSource, UpstreamSource
from parts import MIB, Line, files_below, line_to, opened_store
from standin import Fault, Hub, random_bytes

REPO = "library/debian"
LAYER = random_bytes(700_000, "layer")
DIGEST = Digest.of(LAYER)


@dataclass
class Room:
    """A store, its fills, and the upstream they fetch from."""

    store: Store
    fills: Fills
    line: Line
    directory: Path

    def start(self, size: int | None = None) -> Fill:
        return self.fills.start(DIGEST, size, lambda start: self.line.upstream.open_blob(REPO, DIGEST, start))

    def reader(self, fill: Fill, start: int = 0, end: int = len(LAYER)) -> FillSource:
        def fallback(at: int, until: int) -> UpstreamSource:
            return UpstreamSource(lambda a, b: self.line.upstream.open_blob(REPO, DIGEST, a, b), at, until)

        assert fill.staged is not None
        return FillSource(fill, fill.staged.path, os.dup(fill.staged.fd), start, end, fallback)

    async def read(self, fill: Fill, start: int = 0, end: int = len(LAYER)) -> bytes:
        await fill.opened()
        source = self.reader(fill, start, end)
        try:
            parts = []
            while not source.finished:
                parts.append(await source.read())
            return b"".join(parts)
        finally:
            await source.close()

    async def failure(self, fill: Fill) -> HubcacheError:
        with pytest.raises(HubcacheError) as caught:
            await fill.ended()
        return caught.value

    def left_nothing(self) -> bool:
        return (
            not self.store.has(DIGEST)
            and self.store.ledger.used == 0
            and files_below(self.directory / "staging") + files_below(self.directory / "store/blobs") == []
            and self.fills.get(DIGEST) is None
        )


@pytest.fixture
async def room(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(fill_module, "_BACKOFF_SECONDS", 0.005)
    monkeypatch.setattr(http_module, "PROGRESS_SECONDS", 1.0)
    hub.image(REPO, "stable", [LAYER])
    async with opened_store(tmp_path) as store, line_to(hub) as line:
        fills = Fills(store, line.seen, store.failed)
        yield Room(store, fills, line, tmp_path)
        await fills.close()


# -- success ---------------------------------------------------------------------------------------------------------


async def test_many_readers_cost_one_fetch_and_all_get_every_byte(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", rate=4_000_000))
    fills = [room.start() for _ in range(20)]
    assert all(fill is fills[0] for fill in fills)
    assert await asyncio.gather(*(room.read(fill) for fill in fills)) == [LAYER] * 20
    assert (hub.count(kind="blob", status=307), hub.count(kind="cdn")) == (1, 1)
    await fills[0].ended()
    blob = await room.store.open_blob(DIGEST)
    assert blob is not None
    assert os.pread(blob.fd, MIB, 0) == LAYER
    blob.close()
    assert room.store.ledger.used == on_disk(len(LAYER))
    assert (room.line.seen.in_flight, room.line.seen.ended) == ([1, 0], [None])


async def test_the_first_bytes_are_there_long_before_the_last(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1000))
    fill = room.start()
    assert await fill.opened() == len(LAYER)
    source = room.reader(fill)
    assert LAYER.startswith(first := await source.read())
    assert len(first) == 1000
    hub.faults.remove(fault)
    await source.close()
    await fill.ended()


async def test_readers_that_leave_do_not_end_the_fill(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1000))
    fill = room.start()
    readers = [asyncio.ensure_future(room.read(fill)) for _ in range(3)]
    await fill.wait_readable(1000)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    hub.faults.remove(fault)
    await fill.ended()
    assert room.store.has(DIGEST)


async def test_the_last_byte_is_held_back_until_all_is_verified(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=len(LAYER) - 1))
    fill = room.start()
    await fill.wait_readable(len(LAYER) - 1)
    hub.faults.remove(fault)
    assert await room.read(fill) == LAYER
    assert fill.verified


@pytest.mark.parametrize(("start", "end"), [(0, 1), (699_999, 700_000), (100_000, 600_000)])
async def test_a_reader_may_begin_and_end_anywhere(room: Room, start: int, end: int) -> None:
    assert await room.read(room.start(), start, end) == LAYER[start:end]


async def test_an_empty_blob_is_filled_like_any_other(hub: Hub, room: Room) -> None:
    empty = Digest.of(b"")
    hub.blob(REPO, b"")
    fill = room.fills.start(empty, None, lambda start: room.line.upstream.open_blob(REPO, empty, start))
    await fill.ended()
    assert room.store.blob_size(empty) == 0


async def test_a_blob_of_hidden_length_is_stored_when_it_is_complete(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", chunked=True))
    fill = room.start()
    assert await room.read(fill) == LAYER
    await fill.ended()
    assert room.store.ledger.used == on_disk(len(LAYER))


async def test_a_manifests_size_makes_a_blob_of_hidden_length_readable_early(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", chunked=True, pause_after=1000))
    fill = room.start(len(LAYER))
    assert await fill.opened() == len(LAYER)
    await fill.wait_readable(1000)
    hub.faults.remove(fault)
    await fill.ended()


async def test_a_fill_that_has_ended_says_so_and_gives_no_reader_another_files_bytes(room: Room) -> None:
    """Between learning the size and beginning to read, a small blob may have arrived and its descriptor been reused."""
    fill = room.start()
    await fill.ended()
    assert fill.staged is not None
    assert fill.staged.closed
    reused = [os.open(room.directory / "lock", os.O_RDONLY) for _ in range(8)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        room.reader(fill)
    for descriptor in reused:
        os.close(descriptor)


# -- broken transfers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(close_after=300_000, times=1),
        Fault(close_after=300_000, times=1, chunked=True),
        Fault(close_after=300_000, times=3),
        Fault(close_after=0, times=2),
        Fault(pause_after=300_000, times=1),
        Fault(status=500, times=2),
        Fault(reset=True, times=2),
        Fault(blackhole=True, times=1),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
async def test_a_broken_transfer_is_taken_up_where_it_broke(hub: Hub, room: Room, fault: Fault, sized: bool) -> None:
    hub.faults.add(replace(fault, kind="cdn"))
    room.line.client._breakers.failed = lambda *_, **__: None  # type: ignore[method-assign]  # circuits: test_breaker
    fill = room.start(len(LAYER) if sized else None)
    assert await room.read(fill) == LAYER
    await fill.ended()
    assert room.store.has(DIGEST)
    cut_off = [record for record in hub.requests(kind="cdn", status=200) if 0 < record.sent < len(LAYER)]
    resumed = hub.requests(kind="cdn", status=206)
    assert bool(cut_off) == bool(resumed), "what had arrived must not be fetched again"


async def test_readers_notice_nothing_of_a_resumed_transfer(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", close_after=200_000, times=2))
    fill = room.start()
    assert [*await asyncio.gather(room.read(fill), room.read(fill, 150_000))] == [LAYER, LAYER[150_000:]]


async def test_a_transfer_is_taken_up_also_from_an_upstream_that_ignores_ranges(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", close_after=300_000, times=1))
    hub.faults.add(Fault(kind="cdn", status=200, body=LAYER))
    fill = room.start()
    assert await room.read(fill) == LAYER
    await fill.ended()


async def test_a_transfer_that_never_gets_further_is_given_up(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", close_after=0))
    fill = room.start()
    assert isinstance(await room.failure(fill), Unavailable)
    assert 2 <= fault.hits <= 8
    assert room.left_nothing()


async def test_back_off_grows_while_nothing_arrives(hub: Hub, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    hub.faults.add(Fault(kind="cdn", close_after=0))
    monkeypatch.setattr(fill_module, "_BACKOFF_SECONDS", 0.25)
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep)
        await room.failure(room.start())
    waits = [seconds for seconds in slept if seconds > 0]
    assert waits[0] == 0.25
    assert waits == sorted(set(waits))


async def test_an_upstream_that_says_nothing_ends_in_an_error_in_time(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", blackhole=True))
    begun = time.monotonic()
    fill = room.start()
    with pytest.raises(Unavailable):
        await fill.opened()
    assert time.monotonic() - begun < 8
    assert room.left_nothing()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(kind="blob", status=404), BlobUnknown),
        (Fault(kind="blob", status=429, headers={"Retry-After": "9"}), TooManyRequests),
        (Fault(kind="cdn", status=416), BadUpstream),
        (Fault(kind="cdn", status=200, body="<html>"), BadUpstream),
        (Fault(kind="cdn", status=200, body=LAYER[:-1]), BadUpstream),
        (Fault(kind="cdn", status=200, body=LAYER + b"!"), BadUpstream),
        (Fault(kind="cdn", extra=1, chunked=True), BadUpstream),
        (Fault(kind="cdn", corrupt_at=0), BadUpstream),
        (Fault(kind="cdn", corrupt_at=699_999), BadUpstream),
        (Fault(kind="cdn", headers={"Content-Encoding": "gzip"}), BadUpstream),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
async def test_what_is_not_the_blob_is_never_stored_nor_asked_for_again(
    hub: Hub, room: Room, fault: Fault, expected: type[HubcacheError], sized: bool
) -> None:
    added = hub.faults.add(replace(fault))
    fill = room.start(len(LAYER) if sized else None)
    assert isinstance(await room.failure(fill), expected)
    assert added.hits == 1
    assert room.left_nothing()
    assert [type(error) for error in room.line.seen.ended] == [expected]


@pytest.mark.parametrize("sized", [True, False])
async def test_nobody_gets_the_last_byte_of_a_corrupt_blob(hub: Hub, room: Room, sized: bool) -> None:
    hub.faults.add(Fault(kind="cdn", corrupt_at=5))
    fill = room.start(len(LAYER) if sized else None)
    await fill.opened()
    source, got = room.reader(fill), list[bytes]()

    async def read_all() -> None:
        while not source.finished:
            got.append(await source.read())

    with pytest.raises(BadUpstream):
        await read_all()
    await source.close()
    assert sum(map(len, got)) < len(LAYER)


async def test_a_failed_fill_can_be_started_anew(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", corrupt_at=5, times=1))
    await room.failure(room.start())
    assert await room.read(room.start()) == LAYER


# -- a store that does not take it -----------------------------------------------------------------------------------


async def test_readers_go_on_from_the_upstream_when_the_disk_is_full_midway(
    hub: Hub, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_write = os.pwrite

    def full_after_some(fd: int, data: bytes, at: int) -> int:
        if at >= 300_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true_write(fd, data[: 300_000 - at], at)

    monkeypatch.setattr(os, "pwrite", full_after_some)
    fill = room.start()
    assert [*await asyncio.gather(room.read(fill), room.read(fill, 200_000, 500_000))] == [
        LAYER,
        LAYER[200_000:500_000],
    ]
    assert isinstance(fill.error, StorageError)
    assert "No space left" in str(room.store.problem)
    assert room.left_nothing()


async def test_a_blob_that_the_index_refuses_still_reaches_its_readers(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise StorageError("the store's index failed")

    monkeypatch.setattr(room.store, "commit", refuse)
    fill = room.start()
    assert await room.read(fill) == LAYER
    assert isinstance(await room.failure(fill), StorageError)
    assert room.left_nothing()


@pytest.mark.parametrize("sized", [True, False])
async def test_a_blob_that_does_not_fit_is_a_storage_error_and_costs_no_more_than_was_reserved(
    hub: Hub, room: Room, sized: bool
) -> None:
    room.store.rooms.capacity = ALLOWANCE + 500_000
    if not sized:
        hub.faults.add(Fault(kind="cdn", chunked=True))
    assert isinstance(await room.failure(room.start()), StorageError)
    assert room.left_nothing()


async def test_closing_gives_up_what_is_still_arriving(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", pause_after=300_000))
    fill = room.start()
    await fill.wait_readable(300_000)
    await room.fills.close()
    assert isinstance(fill.error, Unavailable)
    assert room.left_nothing()


async def test_defect_in_a_fill_is_an_error_to_its_readers_and_no_hang(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.fills, "_absorb", lambda *_: 1 / 0)
    fill = room.start()
    with pytest.raises(Unavailable, match="internal"):
        await asyncio.wait_for(fill.wait_readable(1), 10)
    [task] = room.fills._tasks or [None]
    assert task is None or isinstance(task.exception(), ZeroDivisionError)


@pytest.mark.parametrize("stored", [True, False])
async def test_staged_file_that_cannot_be_removed_keeps_nobody_waiting(
    hub: Hub, room: Room, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    if not stored:
        hub.faults.add(Fault(kind="cdn", corrupt_at=5))
    fill = room.start()
    await fill.opened()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        if stored:
            await asyncio.wait_for(fill.ended(), 10)
        else:
            assert isinstance(await asyncio.wait_for(room.failure(fill), 10), BadUpstream)
    assert room.store.has(DIGEST) == stored
    assert room.fills.get(DIGEST) is None
    assert "cannot remove a staged file" in (room.store.problem or "")


async def test_waiting_for_bytes_ends_with_patience() -> None:
    fill = Fill(DIGEST)
    await asyncio.wait_for(fill.wait_readable(1, 0.01), 10)
    assert fill._readers == set()


async def test_only_those_are_woken_whose_bytes_have_come() -> None:
    fill = Fill(DIGEST)
    near, far = (asyncio.ensure_future(fill.wait_readable(count)) for count in (10, 20))
    await asyncio.sleep(0)
    fill.verified = True
    fill.advance(10)
    await asyncio.wait_for(near, 10)
    assert not far.done()
    fill.error = BadUpstream("broken")
    fill.notify()
    with pytest.raises(BadUpstream):
        await far
