"""The bucket: small objects with conditions, large objects in threads, and failures."""

import asyncio
import threading
from pathlib import Path
from typing import BinaryIO

import obstore
import pytest
from hubcache.fleet import bucket as bucket_module
from hubcache.fleet import bucket_upload, keys
from hubcache.fleet.bucket import Bucket, BucketUnavailable
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from obstore.store import LocalStore, MemoryStore
from support.fleet import CLOSED_PORT, CountedRequests
from support.users import until


@pytest.fixture
def observer() -> CountedRequests:
    return CountedRequests()


@pytest.fixture
def bucket(observer: CountedRequests) -> Bucket:
    return Bucket(MemoryStore(), observer)


async def test_object_is_created_once(bucket: Bucket, observer: CountedRequests) -> None:
    assert await bucket.create("lease/a", b"one")
    assert await bucket.create("lease/a", b"two") is None
    found = await bucket.get("lease/a")
    assert found is not None
    assert found.value == b"one"
    assert found.entry.key == "lease/a"
    assert found.entry.size == 3
    assert observer.events == [("put", "ok"), ("put", "conflict"), ("get", "ok")]


async def test_object_is_replaced_only_if_it_did_not_change(bucket: Bucket) -> None:
    first = await bucket.put("tag/a", b"one")
    second = await bucket.replace("tag/a", b"two", first)
    assert second is not None
    assert await bucket.replace("tag/a", b"three", first) is None
    found = await bucket.get("tag/a")
    assert found is not None
    assert found.value == b"two"
    assert found.entry.e_tag == second


async def test_absent_object_is_none(bucket: Bucket, observer: CountedRequests) -> None:
    assert await bucket.get("blob/a") is None
    assert await bucket.open("blob/a") is None
    await bucket.delete("blob/a")
    assert observer.events[:2] == [("get", "absent"), ("get", "absent")]


@pytest.mark.parametrize(
    ("key", "most"),
    [
        (keys.lease("blob/x"), 4 << 10),
        (keys.node("one"), 4 << 10),
        (keys.SECRET, 4 << 10),
        (keys.tag("hub", "a/b", "1"), 64 << 10),
        (keys.popularity("one"), 1 << 20),
        (keys.SWEEP_STATE, 4 << 20),
        (keys.manifest("hub", "a/b", Digest.of(b"")), 8 << 20),
    ],
)
async def test_object_that_is_too_large_is_not_received_and_can_be_replaced(
    bucket: Bucket, key: str, most: int
) -> None:
    await bucket.put(key, bytes(most))
    found = await bucket.get(key)
    assert found is not None
    assert len(found.value) == most
    await bucket.put(key, bytes(most + 1))
    found = await bucket.get(key)
    assert found is not None
    assert (found.value, found.entry.size) == (b"", most + 1)
    assert await bucket.replace(key, b"small", found.entry.e_tag)


async def test_body_of_an_object_that_is_too_large_is_not_read(tmp_path: Path, observer: CountedRequests) -> None:
    (tmp_path / "lease").mkdir()
    with (tmp_path / "lease/x").open("wb") as file:
        file.truncate(100 << 20)
    found = await Bucket(LocalStore(tmp_path), observer).get("lease/x")
    assert found is not None
    assert (found.value, found.entry.size) == (b"", 100 << 20)


async def test_a_list_is_counted_once_for_each_request(
    bucket: Bucket, observer: CountedRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubcache.fleet.bucket._PAGE", 2)
    for name in "abc":
        await bucket.put(f"node/{name}", b"")
    observer.events.clear()
    assert len([entry async for entry in bucket.list("node")]) == 3
    assert observer.events == [("list", "ok"), ("list", "ok")]


async def test_objects_are_listed_by_prefix(bucket: Bucket) -> None:
    for key in ("node/a", "node/b", "nodes/c"):
        await bucket.put(key, b"x")
    assert sorted([entry.key async for entry in bucket.list("node")]) == ["node/a", "node/b"]


async def test_request_that_is_cancelled_counts_as_an_error(
    bucket: Bucket, observer: CountedRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(obstore, "get_async", hang)
    for request in (bucket.get("tag/a"), bucket.open("blob/a")):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await request
    assert observer.events == [("get", "error")] * 2
    assert bucket.is_usable


async def test_file_that_cannot_be_read_is_no_failure_of_the_bucket(
    bucket: Bucket, observer: CountedRequests, tmp_path: Path
) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(StorageError):
            await bucket.upload("blob/a", path)
    assert bucket.is_usable
    assert bucket.problem is None
    assert observer.events == [("upload", "error")] * 2
    assert await bucket.head("blob/a") is None


async def test_file_that_cannot_be_read_to_its_end_is_not_uploaded(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = tmp_path / "file", 0
    path.write_bytes(bytes(20 << 20))
    read = bucket_upload._read

    def fail_later(file: BinaryIO) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 3:
            raise OSError("I/O error")
        return read(file)

    monkeypatch.setattr(bucket_upload, "_read", fail_later)
    with pytest.raises(StorageError, match="I/O error"):
        await bucket.upload("blob/a", path)
    assert bucket.is_usable
    assert await bucket.head("blob/a") is None


async def test_upload_that_is_cancelled_closes_its_file_after_the_read(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, may_end, closed = threading.Event(), threading.Event(), list[bool]()

    def read(file: BinaryIO) -> bytes:
        reads.set()
        may_end.wait(10)
        closed.append(file.closed)
        return b"data"

    monkeypatch.setattr(bucket_upload, "_read", read)
    path = tmp_path / "file"
    path.write_bytes(b"data")
    upload = asyncio.create_task(bucket.upload("blob/a", path))
    await until(reads.is_set)
    for _ in range(2):
        upload.cancel()
        await asyncio.sleep(0)
    assert not upload.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert closed == [False]


class HangingWriter:
    """A writer of obstore that accepts no bytes. With `hangs`, neither does the bucket delete them."""

    def __init__(self, *, hangs: bool) -> None:
        self.is_writing = asyncio.Event()
        self.aborts = 0
        self._hangs = hangs

    async def write(self, _: bytes) -> None:
        self.is_writing.set()
        await asyncio.Event().wait()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert kind is asyncio.CancelledError
        self.aborts += 1
        if self._hangs:
            await asyncio.Event().wait()


@pytest.mark.parametrize("hangs", [False, True])
async def test_upload_that_is_cancelled_deletes_its_parts(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    writer = HangingWriter(hangs=hangs)
    monkeypatch.setattr(obstore, "open_writer_async", lambda *_, **__: writer)
    monkeypatch.setattr(bucket_upload, "_ABORT_SECONDS", 0.01)
    path = tmp_path / "file"
    path.write_bytes(b"data")
    upload = asyncio.create_task(bucket.upload("blob/a", path))
    await writer.is_writing.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert writer.aborts == 1


@pytest.mark.parametrize(("start", "end"), [(0, None), (5, None), (5, 1 << 20)])
async def test_uploaded_file_is_received_in_a_thread(
    bucket: Bucket, tmp_path: Path, start: int, end: int | None
) -> None:
    data = bytes(range(256)) * (12 << 12)
    path = tmp_path / "file"
    path.write_bytes(data)
    await bucket.upload("blob/a", path)
    body = await bucket.open("blob/a", start, end)
    assert body is not None
    assert body.entry.size == len(data)
    assert body.start == start
    received = await asyncio.to_thread(lambda: b"".join(body.chunks))
    assert received == data[start:end]


async def test_range_beyond_the_end_of_an_object_shows_its_size(bucket: Bucket, observer: CountedRequests) -> None:
    await bucket.put("blob/a", b"short")
    for start in (5, 100):
        body = await bucket.open("blob/a", start)
        assert body is not None
        assert body.entry.size == 5
        assert list(body.chunks) == []
    assert bucket.is_usable
    assert observer.events[1:] == [("get", "ok")] * 2


async def test_bucket_that_does_not_answer_is_asked_once_in_a_while(observer: CountedRequests) -> None:
    now = 100.0
    bucket = Bucket(CLOSED_PORT, observer, lambda: now)
    with pytest.raises(BucketUnavailable, match="does not answer"):
        await bucket.get("a")
    assert not bucket.is_usable
    assert bucket.problem
    with pytest.raises(BucketUnavailable):
        await bucket.put("a", b"")
    assert observer.events == [("get", "error")], "no request during the pause"
    with pytest.raises(BucketUnavailable):
        await bucket.ping("a", b"")
    assert observer.events[1:] == [("put", "error")]
    now += 60
    assert bucket.is_usable


def test_answer_to_an_earlier_request_ends_the_pause(bucket: Bucket) -> None:
    """As while a bucket is full: it refuses writes, and answers reads."""
    with bucket._reporting("get", "a"):
        with pytest.raises(BucketUnavailable), bucket._reporting("put", "b"):
            raise OSError("insufficient storage")
        assert not bucket.is_usable
    assert bucket.is_usable
    assert bucket.problem is None


async def test_closed_bucket_receives_no_requests_not_even_pings(bucket: Bucket, observer: CountedRequests) -> None:
    bucket.closed_because = "not examined yet"
    assert not bucket.is_usable
    for work in (bucket.get("a"), bucket.ping("a", b"")):
        with pytest.raises(BucketUnavailable, match="not examined yet"):
            await work
    assert observer.events == []
    bucket.closed_because = None
    await bucket.ping("a", b"")
    assert observer.events == [("put", "ok")]


async def test_slow_bucket_is_not_asked_for_a_growing_time(
    observer: CountedRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "PATIENCE_SECONDS", 0.01)
    now = 100.0
    slow = Bucket(MemoryStore(), observer, lambda: now)
    sent = 0

    async def hang() -> None:
        nonlocal sent
        sent += 1
        await asyncio.Event().wait()

    async def is_asked() -> bool:
        before = sent
        with pytest.raises(BucketUnavailable, match="slow"):
            await slow.in_time(hang)
        return sent > before

    for pause in (5, 10, 20, 20):
        assert await is_asked()
        now += pause - 1
        assert not await is_asked()
        now += 1


async def test_bucket_that_was_slow_is_used_again(observer: CountedRequests, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    slow = Bucket(MemoryStore(), observer, lambda: now)
    with monkeypatch.context() as patch:
        patch.setattr(bucket_module, "PATIENCE_SECONDS", 0.01)
        with pytest.raises(BucketUnavailable):
            await slow.in_time(asyncio.Event().wait)
    now += 5
    assert await slow.in_time(lambda: slow.get("a")) is None
    assert await slow.in_time(lambda: slow.get("a")) is None


async def test_heartbeat_shows_that_the_bucket_is_not_slow_any_more(
    observer: CountedRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Bucket(MemoryStore(), observer, lambda: 100.0)
    with monkeypatch.context() as patch:
        patch.setattr(bucket_module, "PATIENCE_SECONDS", 0.01)
        with pytest.raises(BucketUnavailable):
            await slow.in_time(asyncio.Event().wait)
    with pytest.raises(BucketUnavailable, match="slow"):
        await slow.in_time(lambda: slow.get("a"))
    await slow.ping("node/a", b"")
    assert await slow.in_time(lambda: slow.get("a")) is None
