"""Fills in trouble: resumed where they broke, never stored when wrong, given to readers where the store is full."""

import asyncio
import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hubcache.oci.errors import BadUpstream, BlobUnknown, HubcacheError, StorageError, TooManyRequests, Unavailable
from hubcache.store.capacity import ALLOWANCE
from hubcache.transfer import fills as fills_module
from support.fills import DIGEST, LAYER, Room, room_fixture
from support.standin import Fault, Hub

room = room_fixture()


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
    room.line.client._breakers.record_failure = lambda *_, **__: None  # type: ignore[method-assign]  # circuits: test_breaker
    fill = room.start(len(LAYER) if sized else None)
    assert await room.read(fill) == LAYER
    await fill.wait_stored()
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
    await fill.wait_stored()


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
    monkeypatch.setattr(fills_module, "_BACKOFF_SECONDS", 0.25)
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
        await fill.wait_opened()
    assert time.monotonic() - begun < 6
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
        (Fault(kind="cdn", corrupt_at=0, headers={"Content-Encoding": "gzip"}), BadUpstream),
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
    await fill.wait_opened()
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
    room.store.capacity.max_bytes = ALLOWANCE + 500_000
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
    monkeypatch.setattr(room.fills, "_receive", lambda *_: 1 / 0)
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
    await fill.wait_opened()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        if stored:
            await asyncio.wait_for(fill.wait_stored(), 10)
        else:
            assert isinstance(await asyncio.wait_for(room.failure(fill), 10), BadUpstream)
    assert room.store.has(DIGEST) == stored
    assert room.fills.get(DIGEST) is None
    assert "cannot remove a staged file" in (room.store.problem or "")
