"""Bodies from the bucket in threads: the end, a pause, a failure and a cancellation."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from hubcache.fleet.bucket import BucketUnavailable
from hubcache.fleet.bucket_bodies import BucketTransfer
from hubcache.oci.errors import StorageError, Unavailable
from support.users import until


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

    with pytest.raises(StorageError, match="the disk is full"):
        await BucketTransfer(chunks(b"a")).receive(fail)


async def test_cancelled_transfer_does_not_wait_for_the_bucket() -> None:
    """A read of the bucket cannot be interrupted; what it brings later is not written."""
    waits, goes_on, received = threading.Event(), threading.Event(), list[bytes]()

    def stalled() -> Iterator[memoryview]:
        yield memoryview(b"a")
        waits.set()
        goes_on.wait(10)
        yield memoryview(b"b")
        goes_on.clear()

    def consume(data: memoryview) -> bool:
        received.append(bytes(data))
        return True

    receiving = asyncio.create_task(BucketTransfer(stalled()).receive(consume))
    await until(waits.is_set)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    goes_on.set()
    await until(lambda: not any_bucket_thread())
    assert received == [b"a"]


def any_bucket_thread() -> bool:
    return any(thread.name == "bucket" for thread in threading.enumerate())


async def test_cancelled_transfer_waits_for_the_chunk_that_is_written() -> None:
    writes, may_end, written = threading.Event(), threading.Event(), list[bytes]()

    def consume(data: memoryview) -> bool:
        writes.set()
        may_end.wait(10)
        written.append(bytes(data))
        return True

    receiving = asyncio.create_task(BucketTransfer(chunks(b"a", b"b")).receive(consume))
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
