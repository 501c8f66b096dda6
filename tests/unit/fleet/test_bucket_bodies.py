"""Bodies from the bucket in threads: the end, a pause, a failure and a cancellation."""

import asyncio
import threading
import weakref
from array import array
from collections.abc import AsyncIterator, Iterator

import pytest
from hubcache.fleet import bucket_bodies
from hubcache.fleet.bucket import BucketUnavailable, _received
from hubcache.fleet.bucket_bodies import BucketTransfer
from hubcache.oci.errors import StorageError, Unavailable
from support.users import until


@pytest.fixture(autouse=True)
async def _ends_all_threads() -> AsyncIterator[None]:
    """No thread of the bucket is left over."""
    yield
    await until(lambda: not bucket_threads())


def bucket_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bucket"]


def chunks(*data: bytes, error: Exception | None = None) -> Iterator[memoryview]:
    for each in data:
        yield memoryview(each)
    if error is not None:
        raise error


async def test_transfer_is_continued_after_a_pause() -> None:
    received: list[bytes] = []

    def consume(data: memoryview) -> bool:
        received.append(bytes(data))
        return len(received) != 2

    transfer = BucketTransfer(chunks(b"a", b"b", b"c"))
    assert not await transfer.receive(consume)
    assert received == [b"a", b"b"]
    assert await transfer.receive(consume)
    assert received == [b"a", b"b", b"c"]


async def test_failure_of_the_bucket_is_one_of_the_upstream() -> None:
    transfer = BucketTransfer(chunks(b"a", error=BucketUnavailable("it broke off")))
    with pytest.raises(Unavailable, match="it broke off"):
        await transfer.receive(lambda _: True)


async def test_failure_to_write_is_raised_as_it_is() -> None:
    def fail(_: memoryview) -> bool:
        raise StorageError("the disk is full")

    transfer = BucketTransfer(chunks(b"a", b"b", b"c", b"d"))
    with pytest.raises(StorageError, match="the disk is full"):
        await transfer.receive(fail)


async def test_cancelled_transfer_does_not_wait_for_the_bucket() -> None:
    """A read of the bucket cannot be interrupted; what it brings later is not written."""
    waits, goes_on, received = threading.Event(), threading.Event(), list[bytes]()

    def stalled() -> Iterator[memoryview]:
        yield memoryview(b"a")
        waits.set()
        goes_on.wait(10)
        yield memoryview(b"b")

    def consume(data: memoryview) -> bool:
        received.append(bytes(data))
        return True

    transfer = BucketTransfer(stalled())
    receiving = asyncio.create_task(transfer.receive(consume))
    await until(lambda: waits.is_set() and bool(received))
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    goes_on.set()
    await until(lambda: not bucket_threads())
    assert received == [b"a"]


async def test_transfer_that_is_too_slow_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_bodies, "_SLOW_SECONDS", 0.05)
    monkeypatch.setattr(bucket_bodies, "_SLOW_BYTES", 2)
    goes_on, received = threading.Event(), list[bytes]()

    def trickle() -> Iterator[memoryview]:
        yield memoryview(b"abcd")
        goes_on.wait(10)
        yield memoryview(b"e")

    def consume(data: memoryview) -> bool:
        received.append(bytes(data))
        return True

    transfer = BucketTransfer(trickle())
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="less than 2 bytes"):
            await transfer.receive(consume)
    goes_on.set()
    await until(lambda: not bucket_threads())
    assert received == [b"abcd"]


async def test_slow_disk_does_not_break_off_a_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_bodies, "_SLOW_SECONDS", 0.01)
    writes, may_end = threading.Event(), threading.Event()

    def consume(_: memoryview) -> bool:
        writes.set()
        may_end.wait(10)
        return True

    transfer = BucketTransfer(chunks(b"a"))
    receiving = asyncio.create_task(transfer.receive(consume))
    await until(writes.is_set)
    done, _ = await asyncio.wait([receiving], timeout=0.1)
    assert not done
    may_end.set()
    assert await receiving


async def test_cancelled_transfer_waits_for_the_chunk_that_is_written() -> None:
    writes, may_end, written = threading.Event(), threading.Event(), list[bytes]()

    def consume(data: memoryview) -> bool:
        writes.set()
        may_end.wait(10)
        written.append(bytes(data))
        return True

    transfer = BucketTransfer(chunks(b"a", b"b"))
    receiving = asyncio.create_task(transfer.receive(consume))
    await until(writes.is_set)
    receiving.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    receiving.cancel()  # a second time
    assert not receiving.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert written == [b"a"], "the file may be closed now"


async def test_memory_of_a_chunk_is_free_before_the_next_one_is_received() -> None:
    received: list[weakref.ref[array[int]]] = []
    kept: list[bool] = []

    def stream() -> Iterator[array[int]]:
        for _ in range(3):
            kept.append(any(each() is not None for each in received))
            yield remembered(array("B", b"chunk"))

    def remembered(chunk: array[int]) -> array[int]:
        received.append(weakref.ref(chunk))
        return chunk

    assert await BucketTransfer(_received(stream())).receive(lambda _: True)
    assert kept == [False, False, False]
