"""Uploads: verified content within the room that there is, retried after an outage, bounded."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hubcache.fleet import keys, uploads
from hubcache.fleet.bucket import Bucket, BucketUnavailable
from hubcache.fleet.fleet_counts import FleetCounts
from hubcache.fleet.leases import Lease, Leases
from hubcache.fleet.uploads import Uploads
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.store.store import Store
from obstore.store import MemoryStore
from support.fleet import AdjustableClock, TestNode
from support.fleet_nodes import AskedRoom
from support.stores import opened_store, put_blob
from support.users import until


class UploadBucket(Bucket):
    """A bucket that accepts no uploads while `error` is set; with a `gate`, each waits for it."""

    error: Exception | None = None
    gate: asyncio.Event | None = None
    running = 0
    most_running = 0

    async def upload(self, key: str, path: Path) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
            await super().upload(key, path)
        finally:
            self.running -= 1


@dataclass
class Uploader:
    """A node's uploads."""

    store: Store
    objects: MemoryStore
    bucket: UploadBucket
    leases: Leases
    room: AskedRoom
    counts: FleetCounts
    uploads: Uploads

    async def lease(self, digest: Digest) -> Lease:
        lease = await self.leases.acquire(f"blob/{digest}")
        assert isinstance(lease, Lease)
        return lease

    async def done(self) -> None:
        await until(lambda: not self.uploads.waiting and not self.uploads._tasks)

    def keys(self, prefix: str = "blob") -> list[str]:
        return [entry["path"] for page in self.objects.list(prefix) for entry in page]


@pytest.fixture
async def uploader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Uploader]:
    monkeypatch.setattr(uploads, "_RETRY_SECONDS", (0.005,))
    async with opened_store(tmp_path) as store:
        objects, counts, room = MemoryStore(), FleetCounts(), AskedRoom()
        bucket = UploadBucket(objects, counts)
        leases = Leases(bucket, AdjustableClock(), TestNode("a"))
        node_uploads = Uploads(bucket, store, room, counts)
        yield Uploader(store, objects, bucket, leases, room, counts, node_uploads)
        await node_uploads.close()
        await leases.close()


@pytest.mark.parametrize("size", [0, 1, 20 << 20])
async def test_stored_blob_is_uploaded_and_its_lease_released(uploader: Uploader, size: int) -> None:
    data = bytes(size)
    digest = await put_blob(uploader.store, data)
    uploader.uploads.add(digest, lease=await uploader.lease(digest))
    await uploader.done()
    found = await uploader.bucket.open(keys.blob(digest))
    assert found is not None
    assert b"".join(found.chunks) == data
    await uploader.leases._retired.delete_all()
    assert uploader.keys("lease") == []
    assert uploader.room.used == [(size, True)]
    assert (uploader.counts.uploads["stored"], uploader.counts.uploaded_bytes) == (1, size)


async def test_few_blobs_are_uploaded_at_once_and_each_once(uploader: Uploader) -> None:
    uploader.bucket.gate = asyncio.Event()
    digests = [await put_blob(uploader.store, bytes([number])) for number in range(6)]
    for digest in (*digests, *digests):
        uploader.uploads.add(digest)
    await until(lambda: uploader.bucket.running == 2)
    assert uploader.uploads.waiting == 6
    uploader.bucket.gate.set()
    await uploader.done()
    assert uploader.bucket.most_running == 2
    assert uploader.counts.uploads == {"stored": 6}


async def test_blob_that_finds_no_room_is_not_uploaded(uploader: Uploader) -> None:
    uploader.room.free = 3
    digest = await put_blob(uploader.store, b"four")
    uploader.uploads.add(digest, lease=await uploader.lease(digest))
    await uploader.done()
    assert uploader.keys() + uploader.keys("lease") == []
    assert uploader.counts.uploads == {"refused": 1}
    assert uploader.room.used == []


async def test_object_that_exists_is_replaced_only_if_it_is_wrong(uploader: Uploader) -> None:
    digest = await put_blob(uploader.store, b"data")
    key = keys.blob(digest)
    await uploader.bucket.put(key, b"wrong")
    for replaces, expected in ((False, b"wrong"), (True, b"data")):
        uploader.uploads.add(digest, replaces=replaces)
        await uploader.done()
        found = await uploader.bucket.get(key)
        assert found is not None
        assert found.value == expected


async def test_content_that_became_private_is_not_uploaded(uploader: Uploader) -> None:
    digest = await put_blob(uploader.store, b"data")
    await uploader.store.private.add(digest)
    uploader.uploads.add(digest, lease=await uploader.lease(digest))
    await uploader.done()
    assert uploader.keys("") == []


@pytest.mark.parametrize("during", ["head", "take", "upload"])
async def test_content_that_becomes_private_during_its_upload_is_not_in_the_bucket(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    digest = await put_blob(uploader.store, b"data")
    asked: Any = uploader.room if during == "take" else uploader.bucket
    request = getattr(asked, during)

    async def and_become_private(*arguments: object) -> object:
        answer = await request(*arguments)
        await uploader.store.private.add(digest)
        return answer

    monkeypatch.setattr(asked, during, and_become_private)
    uploader.uploads.add(digest)
    await uploader.done()
    assert uploader.keys("") == []
    assert len(uploader.room.used) == 1


async def test_content_that_became_private_is_deleted_when_the_bucket_answers_again(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await put_blob(uploader.store, b"data")
    upload, delete = uploader.bucket.upload, uploader.bucket.delete
    failures = [BucketUnavailable("the response is lost"), BucketUnavailable("down")]

    async def upload_without_answer(key: str, path: Path) -> None:
        await upload(key, path)
        await uploader.store.private.add(digest)
        raise failures.pop(0)

    async def fail_once(key: str) -> None:
        if failures:
            raise failures.pop()
        await delete(key)

    monkeypatch.setattr(uploader.bucket, "upload", upload_without_answer)
    monkeypatch.setattr(uploader.bucket, "delete", fail_once)
    uploader.uploads.add(digest)
    await uploader.done()
    assert failures == []
    assert uploader.keys("") == []


async def test_private_content_has_a_key_of_its_own(uploader: Uploader) -> None:
    digest = await put_blob(uploader.store, b"data")
    await uploader.store.private.add(digest)
    uploader.uploads.add(digest, private=True)
    await uploader.done()
    assert uploader.keys("") == [keys.blob(digest, private=True)]


async def test_content_that_is_not_stored_any_more_is_not_uploaded(uploader: Uploader) -> None:
    uploader.uploads.add(Digest.of(b"evicted"))
    await uploader.done()
    assert uploader.keys("") == []


async def test_uploads_survive_an_outage(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[object] = []
    upload = uploader.uploads._upload

    async def counted(one: uploads._Upload) -> None:
        attempts.append(one)
        await upload(one)

    monkeypatch.setattr(uploader.uploads, "_upload", counted)
    digests = [await put_blob(uploader.store, bytes([number])) for number in range(4)]
    leases = [await uploader.lease(digest) for digest in digests]
    uploader.bucket.closed_because = "down"
    for digest, lease in zip(digests, leases, strict=True):
        uploader.uploads.add(digest, lease=lease)
    await until(lambda: len(attempts) >= 20)
    assert uploader.uploads.waiting == 4
    assert uploader.leases._own == {}, "leases are not renewed meanwhile: other nodes need not wait"
    uploader.bucket.closed_because = None
    await uploader.done()
    assert {*uploader.keys()} == {keys.blob(digest) for digest in digests}
    assert uploader.counts.uploads == {"stored": 4}


async def test_upload_that_fails_while_the_bucket_answers_is_given_up(uploader: Uploader) -> None:
    digest = await put_blob(uploader.store, b"data")
    uploader.bucket.error = BucketUnavailable("insufficient storage")
    uploader.uploads.add(digest)
    await uploader.done()
    assert uploader.room.used == [(4, False)] * 3
    assert uploader.counts.uploads == {"failed": 1}


async def test_upload_that_takes_too_long_is_repeated(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_LONGEST_SECONDS", 0.02)
    digest = await put_blob(uploader.store, b"data")
    uploader.bucket.gate = asyncio.Event()
    uploader.uploads.add(digest)
    await until(lambda: (4, False) in uploader.room.used)
    uploader.bucket.gate.set()
    await uploader.done()


async def test_upload_that_is_repeated_while_its_lease_is_released_runs_once(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [await put_blob(uploader.store, data) for data in (b"one", b"two")]
    lease, gate = await uploader.lease(digests[0]), asyncio.Event()
    is_releasing, release = asyncio.Event(), lease.release

    async def release_slowly() -> None:
        is_releasing.set()
        await gate.wait()
        await release()

    monkeypatch.setattr(lease, "release", release_slowly)
    uploader.bucket.error = BucketUnavailable("fails once")
    uploader.uploads.add(digests[0], lease=lease)
    await is_releasing.wait()
    uploader.bucket.error = None
    workers = [*uploader.uploads._tasks]
    uploader.uploads.add(digests[1])
    await until(lambda: uploader.keys() == [keys.blob(digests[1])])
    gate.set()
    await uploader.done()
    assert [worker.exception() for worker in workers] == [None]
    assert uploader.counts.uploads == {"stored": 2}
    assert uploader.keys("lease") == []


async def test_blob_that_cannot_be_read_is_given_up(uploader: Uploader, caplog: pytest.LogCaptureFixture) -> None:
    digest = await put_blob(uploader.store, b"data")
    uploader.bucket.error = StorageError("I/O error")
    uploader.uploads.add(digest, lease=await uploader.lease(digest))
    await uploader.done()
    await until(lambda: not uploader.uploads._releasing)
    assert uploader.counts.uploads == {"failed": 1}
    assert uploader.keys("lease") == []
    assert caplog.records == []


async def test_uploads_continue_after_a_defect(uploader: Uploader, caplog: pytest.LogCaptureFixture) -> None:
    digests = [await put_blob(uploader.store, bytes([number])) for number in range(5)]
    uploader.bucket.gate = asyncio.Event()
    for digest in digests[:4]:
        uploader.uploads.add(digest, lease=await uploader.lease(digest))
    await until(lambda: uploader.bucket.running == 2)
    uploader.bucket.error = ArithmeticError("defect")
    uploader.bucket.gate.set()
    await uploader.done()
    await until(lambda: not uploader.uploads._releasing)
    assert uploader.counts.uploads == {"failed": 4}
    assert uploader.keys("lease") == []
    assert len(caplog.records) == 4
    uploader.bucket.error = None
    uploader.uploads.add(digests[4])
    await uploader.done()
    assert uploader.keys() == [keys.blob(digests[4])]


async def test_number_of_waiting_blobs_is_bounded(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_WAITING", 3)
    monkeypatch.setattr(uploads, "_MAX_LEASES", 2)
    uploader.bucket.gate = asyncio.Event()
    digests = [await put_blob(uploader.store, bytes([number])) for number in range(8)]
    for digest in digests[:2]:
        uploader.uploads.add(digest)
    await until(lambda: uploader.bucket.running == 2)
    for digest in digests[2:]:
        uploader.uploads.add(digest, lease=await uploader.lease(digest))
    assert uploader.uploads.waiting == 5
    assert len(uploader.leases._own) <= 3
    await until(lambda: not uploader.uploads._releasing)
    assert uploader.keys("lease") == [], (
        "the leases of the last four were released at once, those of the first are lost"
    )
    assert uploader.counts.uploads == {"failed": 3}
    uploader.bucket.gate.set()
    await uploader.done()
    assert {*uploader.keys()} == {keys.blob(digest) for digest in (*digests[:2], *digests[5:])}


async def test_close_gives_uploads_up_and_releases_leases(uploader: Uploader) -> None:
    uploader.bucket.gate = asyncio.Event()
    for number in range(4):
        digest = await put_blob(uploader.store, bytes([number]))
        uploader.uploads.add(digest, lease=await uploader.lease(digest))
    await until(lambda: uploader.bucket.running == 2)
    await uploader.uploads.close()
    assert uploader.uploads.waiting == 0
    assert uploader.keys("") == []
    assert uploader.counts.uploads == {"failed": 4}
