"""Failing fills: resumed where they broke off, never stored when wrong, delivered to readers when the store is full."""

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hubcache.oci.errors import BadUpstream, BlobUnknown, HubcacheError, StorageError, TooManyRequests, Unavailable
from hubcache.store.capacity import ALLOWANCE
from hubcache.store.staging import Staged
from hubcache.transfer import fills as fills_module
from support.fills import DIGEST, LAYER, FillHarness, fill_harness_fixture
from support.standin import Fault, Hub

harness = fill_harness_fixture()


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
async def test_broken_transfer_is_resumed_where_it_broke_off(
    hub: Hub, harness: FillHarness, fault: Fault, sized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "is_silent", fault.pause_after or fault.blackhole)
    hub.faults.add(replace(fault, kind="cdn"))
    harness.line.client._breakers.record_failure = lambda *_, **__: None  # type: ignore[method-assign]  # circuits: test_breaker
    fill = harness.start(len(LAYER) if sized else None)
    assert await harness.read(fill) == LAYER
    await fill.wait_stored()
    assert harness.store.has(DIGEST)
    cut_off = [record for record in hub.requests(kind="cdn", status=200) if 0 < record.sent < len(LAYER)]
    resumed = hub.requests(kind="cdn", status=206)
    assert bool(cut_off) == bool(resumed), "bytes that had arrived must not be downloaded again"


async def test_resumed_transfer_is_invisible_to_readers(hub: Hub, harness: FillHarness) -> None:
    hub.faults.add(Fault(kind="cdn", close_after=200_000, times=2))
    fill = harness.start()
    assert [*await asyncio.gather(harness.read(fill), harness.read(fill, 150_000))] == [LAYER, LAYER[150_000:]]


async def test_transfer_is_resumed_from_an_upstream_that_ignores_ranges(hub: Hub, harness: FillHarness) -> None:
    hub.faults.add(Fault(kind="cdn", close_after=300_000, times=1))
    hub.faults.add(Fault(kind="cdn", status=200, body=LAYER))
    fill = harness.start()
    assert await harness.read(fill) == LAYER
    await fill.wait_stored()


async def test_transfer_without_progress_fails_after_some_attempts(hub: Hub, harness: FillHarness) -> None:
    fault = hub.faults.add(Fault(kind="cdn", close_after=0))
    fill = harness.start()
    assert isinstance(await harness.failure(fill), Unavailable)
    assert 2 <= fault.hits <= 8
    assert harness.has_left_nothing()


async def test_back_off_grows_while_nothing_arrives(
    hub: Hub, harness: FillHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    hub.faults.add(Fault(kind="cdn", close_after=0))
    monkeypatch.setattr(fills_module, "_BACKOFF_SECONDS", 0.25)
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep)
        await harness.failure(harness.start())
    waits = [seconds for seconds in slept if seconds > 0]
    assert waits[0] == 0.25
    assert waits == sorted(set(waits))


async def test_silent_upstream_is_an_error_after_the_time_out(hub: Hub, harness: FillHarness) -> None:
    fault = hub.faults.add(Fault(kind="cdn", blackhole=True))
    fill = harness.start()
    with pytest.raises(Unavailable, match="time-out"):
        await fill.wait_opened()
    assert 1 <= fault.hits <= 3
    assert harness.has_left_nothing()


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
async def test_wrong_content_is_neither_stored_nor_requested_again(
    hub: Hub, harness: FillHarness, fault: Fault, expected: type[HubcacheError], sized: bool
) -> None:
    added = hub.faults.add(replace(fault))
    fill = harness.start(len(LAYER) if sized else None)
    assert isinstance(await harness.failure(fill), expected)
    assert added.hits == 1
    assert harness.has_left_nothing()
    assert [type(error) for error in harness.line.seen.ended] == [expected]


@pytest.mark.parametrize("sized", [True, False])
async def test_last_byte_of_a_corrupt_blob_is_not_delivered(hub: Hub, harness: FillHarness, sized: bool) -> None:
    hub.faults.add(Fault(kind="cdn", corrupt_at=5))
    fill = harness.start(len(LAYER) if sized else None)
    await fill.wait_opened()
    source, got = harness.reader(fill), list[bytes]()

    async def read_all() -> None:
        while not source.finished:
            got.append(await source.read())

    with pytest.raises(BadUpstream):
        await read_all()
    await source.close()
    assert sum(map(len, got)) < len(LAYER)


async def test_fill_can_be_started_again_after_a_failure(hub: Hub, harness: FillHarness) -> None:
    hub.faults.add(Fault(kind="cdn", corrupt_at=5, times=1))
    await harness.failure(harness.start())
    assert await harness.read(harness.start()) == LAYER


# -- store failures ---------------------------------------------------------------------------------------------------


async def test_readers_continue_from_the_upstream_when_the_disk_becomes_full(
    hub: Hub, harness: FillHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_write = os.pwrite

    def full_after_some(fd: int, data: bytes, at: int) -> int:
        if at >= 300_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true_write(fd, data[: 300_000 - at], at)

    monkeypatch.setattr(os, "pwrite", full_after_some)
    fill = harness.start()
    assert [*await asyncio.gather(harness.read(fill), harness.read(fill, 200_000, 500_000))] == [
        LAYER,
        LAYER[200_000:500_000],
    ]
    assert isinstance(fill.error, StorageError)
    assert "No space left" in str(harness.store.problem)
    assert harness.has_left_nothing()


async def test_blob_that_cannot_be_committed_still_reaches_its_readers(
    harness: FillHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise StorageError("the store's index failed")

    monkeypatch.setattr(harness.store, "commit", refuse)
    fill = harness.start()
    assert await harness.read(fill) == LAYER
    assert isinstance(await harness.failure(fill), StorageError)
    assert harness.has_left_nothing()


@pytest.mark.parametrize("sized", [True, False])
async def test_blob_over_the_capacity_is_a_storage_error_and_leaves_nothing(
    hub: Hub, harness: FillHarness, sized: bool
) -> None:
    harness.store.capacity.max_bytes = ALLOWANCE + 500_000
    if not sized:
        hub.faults.add(Fault(kind="cdn", chunked=True))
    assert isinstance(await harness.failure(harness.start()), StorageError)
    assert harness.has_left_nothing()


async def test_close_cancels_running_fills(hub: Hub, harness: FillHarness) -> None:
    hub.faults.add(Fault(kind="cdn", pause_after=300_000))
    fill = harness.start()
    await fill.wait_readable(300_000)
    await harness.fills.close()
    assert isinstance(fill.error, Unavailable)
    assert harness.has_left_nothing()


async def test_fill_that_is_cancelled_while_capacity_is_reserved_receives_nothing(
    hub: Hub, harness: FillHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.add(Fault(kind="cdn", chunked=True, pause_after=0))
    is_reserving, may_reserve, extend = asyncio.Event(), asyncio.Event(), harness.store.extend

    async def extend_late(staged: Staged, size: int) -> None:
        is_reserving.set()
        await may_reserve.wait()
        await extend(staged, size)

    monkeypatch.setattr(harness.store, "extend", extend_late)
    harness.start()
    await is_reserving.wait()
    closing = asyncio.create_task(harness.fills.close())
    await asyncio.sleep(0)
    may_reserve.set()
    await asyncio.wait_for(closing, 10)
    assert harness.has_left_nothing()


async def test_defect_in_a_fill_is_an_error_for_its_readers(
    harness: FillHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.fills, "_receive", lambda *_: 1 / 0)
    fill = harness.start()
    with pytest.raises(Unavailable, match="internal"):
        await asyncio.wait_for(fill.wait_readable(1), 10)
    [task] = harness.fills._tasks or [None]
    assert task is None or isinstance(task.exception(), ZeroDivisionError)


@pytest.mark.parametrize("stored", [True, False])
async def test_staged_file_that_cannot_be_removed_does_not_block_readers(
    hub: Hub, harness: FillHarness, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    if not stored:
        hub.faults.add(Fault(kind="cdn", corrupt_at=5))
    fill = harness.start()
    await fill.wait_opened()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        if stored:
            await asyncio.wait_for(fill.wait_stored(), 10)
        else:
            assert isinstance(await asyncio.wait_for(harness.failure(fill), 10), BadUpstream)
    assert harness.store.has(DIGEST) == stored
    assert harness.fills.get(DIGEST) is None
    assert "cannot remove a staged file" in (harness.store.problem or "")
