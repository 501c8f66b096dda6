"""Bodies from the bucket in threads: the end, a pause, a failure and a cancellation."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from hubcache.fleet import bucket_bodies
from hubcache.fleet.bucket import BucketUnavailable
from hubcache.fleet.bucket_bodies import BucketTransfer, ReadAhead
from hubcache.oci.errors import StorageError, Unavailable
from support.users import until

EACH_SIZE = pytest.mark.parametrize("size", [3, 4 << 20], ids=["small", "large"])
"""Sizes without and with a thread that reads ahead."""


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


@EACH_SIZE
async def test_transfer_is_continued_after_a_pause(size: int) -> None:
    received: list[bytes] = []

    def consume(data: memoryview) -> bool:
        received.append(bytes(data))
        return len(received) != 2

    transfer = BucketTransfer(chunks(b"a", b"b", b"c"), size)
    assert not await transfer.receive(consume)
    assert received == [b"a", b"b"]
    assert await transfer.receive(consume)
    assert received == [b"a", b"b", b"c"]


@EACH_SIZE
async def test_failure_of_the_bucket_is_one_of_the_upstream(size: int) -> None:
    transfer = BucketTransfer(chunks(b"a", error=BucketUnavailable("it broke off")), size)
    with pytest.raises(Unavailable, match="it broke off"):
        await transfer.receive(lambda _: True)


@EACH_SIZE
async def test_failure_to_write_is_raised_as_it_is(size: int) -> None:
    def fail(_: memoryview) -> bool:
        raise StorageError("the disk is full")

    transfer = BucketTransfer(chunks(b"a", b"b", b"c", b"d"), size)
    with pytest.raises(StorageError, match="the disk is full"):
        await transfer.receive(fail)
    transfer.close()


@EACH_SIZE
async def test_cancelled_transfer_does_not_wait_for_the_bucket(size: int) -> None:
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

    transfer = BucketTransfer(stalled(), size)
    receiving = asyncio.create_task(transfer.receive(consume))
    await until(lambda: waits.is_set() and bool(received))
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    transfer.close()
    goes_on.set()
    await until(lambda: not bucket_threads())
    assert received == [b"a"]


@EACH_SIZE
async def test_transfer_that_is_too_slow_is_broken_off(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
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

    transfer = BucketTransfer(trickle(), size)
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="less than 2 bytes"):
            await transfer.receive(consume)
    transfer.close()
    goes_on.set()
    await until(lambda: not bucket_threads())
    assert received == [b"abcd"]


@EACH_SIZE
async def test_slow_disk_does_not_break_off_a_transfer(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_bodies, "_SLOW_SECONDS", 0.01)
    writes, may_end = threading.Event(), threading.Event()

    def consume(_: memoryview) -> bool:
        writes.set()
        may_end.wait(10)
        return True

    transfer = BucketTransfer(chunks(b"a"), size)
    receiving = asyncio.create_task(transfer.receive(consume))
    await until(writes.is_set)
    done, _ = await asyncio.wait([receiving], timeout=0.1)
    assert not done
    may_end.set()
    assert await receiving


@EACH_SIZE
async def test_cancelled_transfer_waits_for_the_chunk_that_is_written(size: int) -> None:
    writes, may_end, written = threading.Event(), threading.Event(), list[bytes]()

    def consume(data: memoryview) -> bool:
        writes.set()
        may_end.wait(10)
        written.append(bytes(data))
        return True

    transfer = BucketTransfer(chunks(b"a", b"b"), size)
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
    transfer.close()


async def test_body_is_read_one_chunk_ahead() -> None:
    read: list[int] = []

    def counted() -> Iterator[memoryview]:
        for number in range(10):
            read.append(number)
            yield memoryview(bytes([number]))

    ahead = ReadAhead(counted())
    assert await asyncio.to_thread(next, ahead) == b"\0"
    await until(lambda: len(read) == 3)
    await asyncio.to_thread(next, ahead)
    await until(lambda: len(read) == 4)
    ahead.close()
    await until(lambda: ahead._thread is not None and not ahead._thread.is_alive())
    assert len(read) == 4
