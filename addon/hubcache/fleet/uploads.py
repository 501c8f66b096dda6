"""Uploads blobs that this node has fetched from a registry, verified and stored.

What waits is kept in memory while the bucket does not answer, up to a bound: content that is not uploaded costs another
download later, by another node.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..store.store import Store
from ..store.stored_blob import StoredBlob
from . import keys
from .bucket import Bucket, BucketUnavailable
from .leases import Lease
from .observer import FleetObserver
from .room import UPLOAD_SECONDS

logger = logging.getLogger("hubcache")

MAX_WAITING = 2000
"""Blobs that wait for their upload; beyond them, the oldest is given up."""

_PARALLEL = 2
"""Uploads at the same time: clients' bytes have priority on the network, and each upload sends parts in parallel."""

_MAX_LEASES = 200
"""Leases that are kept by blobs that wait: each is renewed every few seconds."""

_ATTEMPTS = 3
"""Attempts to upload a blob while the bucket answers other requests. Attempts after another failure do not count: the
bucket may answer again only after hours."""

_RETRY_SECONDS = (1.0, 5.0, 30.0)
"""Pauses after failures in a row."""

_LONGEST_SECONDS = 60.0
_SLOWEST_BYTES = 1 << 20
"""Bytes a second of the slowest upload that is not given up, after `_LONGEST_SECONDS`."""


class Room(Protocol):
    """The part of the bucket's capacity that this node may use."""

    async def take(self, size: int) -> bool:
        """Whether `size` bytes may be uploaded now; if so, `ended` is to be called once. Raises `BucketUnavailable`."""

    def ended(self, size: int, *, is_stored: bool) -> None:
        """Record that an upload has ended, and whether the bucket has confirmed it."""


@dataclass(slots=True)
class _Upload:
    """A stored blob that is to be uploaded. `replaces`: the object that the bucket may have is wrong."""

    digest: Digest
    private: bool
    replaces: bool
    lease: Lease | None
    hold: contextlib.ExitStack
    """Keeps the blob from being evicted until it is closed."""
    failures: int = 0
    has_begun: bool = False
    """Whether bytes were sent to the bucket, which may have stored them."""
    is_stored: bool = False
    """Whether the bucket has the blob."""

    @property
    def key(self) -> str:
        """The key of the object."""
        return keys.blob(self.digest, private=self.private)

    async def release(self) -> None:
        """Release the lease, since the others find the blob in the bucket or fetch it; let the blob be evicted."""
        self.hold.close()
        lease, self.lease = self.lease, None
        if lease is not None and self.is_stored:
            lease.retire()
        elif lease is not None:
            await lease.release()


class Uploads:
    """The blobs that wait for their upload, and those that are uploaded."""

    def __init__(self, bucket: Bucket, store: Store, room: Room, observer: FleetObserver) -> None:
        self._bucket = bucket
        self._store = store
        self._room = room
        self._observer = observer
        self._waiting: OrderedDict[Digest, _Upload] = OrderedDict()
        self._running: dict[Digest, _Upload] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._releasing: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._failures = 0
        """Uploads that failed in a row, without those for which no request was sent."""

    @property
    def waiting(self) -> int:
        """Number of blobs that are not uploaded yet."""
        return len(self._waiting) + len(self._running)

    def add(
        self,
        digest: Digest,
        *,
        private: bool = False,
        replaces: bool = False,
        lease: Lease | None = None,
        hold: contextlib.ExitStack | None = None,
    ) -> None:
        """Upload a stored blob, and release its lease then. To be called only for verified content.

        `private`: the blob was fetched with a client's own credentials. `replaces`: an object with this key is wrong.
        `hold` keeps the blob from being evicted; it is closed when the first attempt has ended.
        """
        upload = _Upload(digest, private, replaces, lease, hold or contextlib.ExitStack())
        if digest in self._waiting or digest in self._running:
            self._release(upload)
            return
        self._waiting[digest] = upload
        if len(self._waiting) > MAX_WAITING:
            self._give_up(self._waiting.popitem(last=False)[1])
        if len(self._waiting) > _MAX_LEASES:
            self._release(upload)
        self._start_worker()

    async def close(self) -> None:
        """Give up all uploads, and release their leases."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for upload in self._waiting.values():
            self._give_up(upload)
        self._waiting.clear()
        await asyncio.gather(*self._releasing)

    def _start_worker(self) -> None:
        if len(self._tasks) < _PARALLEL and not self._is_closed:
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._worker_ended)

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        """Log the error of a worker that has ended early, and start another one for what waits."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("hubcache: a blob was not uploaded to the bucket", exc_info=error)
        if self._waiting:
            self._start_worker()

    def _give_up(self, upload: _Upload) -> None:
        self._observer.upload_ended("failed", self._store.blob_size(upload.digest) or 0)
        self._release(upload)

    def _release(self, upload: _Upload) -> None:
        task = asyncio.create_task(upload.release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _work(self) -> None:
        """Upload while something waits."""
        while self._waiting:
            digest, upload = self._waiting.popitem(last=False)
            self._running[digest] = upload
            try:
                pause = await self._attempt(upload)
                await upload.release()
            finally:
                del self._running[digest]
            if pause is None:
                continue
            if upload.failures < _ATTEMPTS:
                self._waiting[digest] = upload
            else:
                self._give_up(upload)
            if self._waiting:
                await asyncio.sleep(pause)

    async def _attempt(self, upload: _Upload) -> float | None:
        """Upload a blob; returns the pause in seconds after a failure, and None when nothing more is to be done."""
        is_usable = self._bucket.is_usable
        did_answer = is_usable and self._bucket.problem is None
        with contextlib.ExitStack() as stack:
            stack.callback(self._give_up, upload)  # the file cannot be read, `close` cancels this, or a defect
            try:
                await self._upload(upload)
            except (BucketUnavailable, TimeoutError):
                stack.pop_all()
                self._failures += is_usable  # else no request was sent, and the next attempt may be soon
                upload.failures += did_answer
                return _RETRY_SECONDS[min(max(1, self._failures), len(_RETRY_SECONDS)) - 1]
            except StorageError:
                return None
            stack.pop_all()
        self._failures = 0
        return None

    async def _upload(self, upload: _Upload) -> None:
        """Upload a blob if it is still stored; raises `BucketUnavailable`, or `TimeoutError` when it takes too long."""
        if self._has_turned_private(upload):
            await self._withdraw(upload)
            return
        try:
            stored = await self._store.open_blob(upload.digest)
        except StorageError:
            return
        if stored is None:
            return
        with contextlib.ExitStack() as stack:
            stack.callback(stored.close)
            may_exist = upload.lease is None or upload.lease.is_lost
            if may_exist and not upload.replaces and await self._bucket.head(upload.key) is not None:
                return
            if not await self._room.take(stored.size):
                self._observer.upload_ended("refused", stored.size)
                return
            if self._has_turned_private(upload):  # during the requests
                self._room.ended(stored.size, is_stored=False)
                return
            upload.has_begun = True
            with self._reporting(stored.size):
                async with asyncio.timeout(min(UPLOAD_SECONDS, _LONGEST_SECONDS + stored.size / _SLOWEST_BYTES)):
                    await self._bucket.upload(upload.key, _path_of(stored))
        if self._has_turned_private(upload):
            await self._withdraw(upload)
        else:
            upload.is_stored = True

    def _has_turned_private(self, upload: _Upload) -> bool:
        return not upload.private and self._store.private.has(upload.digest)

    async def _withdraw(self, upload: _Upload) -> None:
        """Delete the object of content that became private while it was uploaded; raises `BucketUnavailable`."""
        if upload.has_begun:
            await self._bucket.delete(upload.key)

    @contextlib.contextmanager
    def _reporting(self, size: int) -> Iterator[None]:
        is_stored = False
        try:
            yield
            is_stored = True
            self._observer.upload_ended("stored", size)
        finally:
            self._room.ended(size, is_stored=is_stored)


def _path_of(stored: StoredBlob) -> Path:
    """Return a path of an open blob, which also exists after the blob is removed where the system has such paths."""
    descriptor = Path(f"/dev/fd/{stored.fd}")
    return descriptor if descriptor.exists() else stored.path
