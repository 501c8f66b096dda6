"""The bucket of a fleet: an object store (S3, Google Cloud Storage, Azure Blob Storage) that several caches share."""

from __future__ import annotations  # obstore has the names of its types in stub files only

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import GCSStore

from ..oci.errors import HubcacheError
from .bucket_upload import upload_file
from .failure_reason import failure_reason
from .keys import is_of_pulls, most_bytes

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions, ObjectMeta, PutResult, UpdateVersion
    from obstore.store import ObjectStore

_REQUEST_SECONDS = 10.0
"""Longest duration of a request whose body is small."""

PATIENCE_SECONDS = 3.0
"""Longest wait for an answer of the bucket while a client waits. Of writes that race, SeaweedFS answers some after more
than a second."""

_SLOW_SECONDS = (5.0, 20.0)
"""How long clients wait for no answer after the bucket was slow, first and at most: the time doubles while it is."""

_PAUSE_SECONDS = 5.0
"""After a failure, requests fail at once for this time: a pull must not wait for the bucket again and again."""

_CHUNK = 512 << 10
"""Bytes of a body that are received at once. CPU seconds of a node that receives, hashes, writes and sends a gigabyte:
256 KiB 2.6, 512 KiB 2.15, 1 MiB 2.4."""

_PAGE = 1000
"""Objects of a request to list; S3 returns no more."""


class BucketUnavailable(HubcacheError):
    """The bucket does not answer, or refuses: the cache goes on without it."""


class BucketObserver(Protocol):
    """Receives events; must not raise and must not block."""

    def bucket_answered(self, kind: str, outcome: str, *, is_of_pulls: bool) -> None:
        """A request ended: `get`, `put`, `delete`, `list` or `upload`, with `ok`, `absent`, `conflict` or `error`.

        `is_of_pulls`: see `keys.is_of_pulls`.
        """


@dataclass(frozen=True, slots=True)
class Entry:
    """An object without its bytes: `size` in bytes, `modified` in seconds since the epoch by the bucket's clock.

    `e_tag` is for `Bucket.replace`; in a list of Google Cloud Storage it is empty.
    """

    key: str
    size: int
    modified: float
    e_tag: str


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A small object, and what is needed to replace exactly this version of it."""

    value: bytes
    entry: Entry


@dataclass(frozen=True, slots=True)
class ObjectBody:
    """The bytes of an object from byte `start`; `size` is that of the whole object. `chunks` blocks: for a thread."""

    entry: Entry
    start: int
    chunks: Iterator[memoryview]


class Bucket:
    """Requests to the bucket. All raise `BucketUnavailable`, and at once for some seconds after a failure.

    `ping` is the exception that tries anyway, so that the periodic work of a fleet finds out when the bucket is back.
    """

    def __init__(
        self,
        store: ObjectStore,
        observer: BucketObserver,
        clock: Callable[[], float] = time.monotonic,
        uploads: ObjectStore | None = None,
    ) -> None:
        """`uploads` is a client with time-outs for large bodies of requests; None if that of `store` suffices."""
        self._store = store
        self._has_generations = isinstance(store, GCSStore)
        self._uploads = store if uploads is None else uploads
        self._observer = observer
        self._clock = clock
        self._paused_until = 0.0
        self._slow_until = self._slow_seconds = 0.0
        self.problem: str | None = None
        """Why the last request failed; None after one that succeeded."""
        self.closed_because: str | None = None
        """Why no request is sent at all, not even a `ping`; None when requests are sent."""

    @property
    def is_usable(self) -> bool:
        """Whether a request would be sent now."""
        return self.closed_because is None and self._clock() >= self._paused_until

    @property
    def is_slow(self) -> bool:
        """Whether no client waits for the bucket at present, because it was slow."""
        return self._clock() < self._slow_until

    # -- small objects ----------------------------------------------------------------------------------------------

    async def get(self, key: str) -> StoredObject | None:
        """Return a small object; None where there is none.

        One that is larger than `keys.most_bytes` is not received: its value is empty, which is no value in any format.
        """

        async def read() -> StoredObject:
            result = await obstore.get_async(self._store, key)
            entry = self._entry(result.meta)
            value = bytes(await result.bytes_async()) if entry.size <= most_bytes(key) else b""
            return StoredObject(value, entry)

        with self._reporting("get", key) as report:
            try:
                return await self._timed(read())
            except FileNotFoundError:
                report("absent")
                return None

    async def head(self, key: str) -> Entry | None:
        """Return an object without its bytes; None where there is none. It counts as a `get`, as in bills."""
        with self._reporting("get", key) as report:
            try:
                return self._entry(await self._timed(obstore.head_async(self._store, key)))
            except FileNotFoundError:
                report("absent")
                return None

    async def put(self, key: str, value: bytes) -> str:
        """Write a small object, replacing an older one; returns its entity tag."""
        with self._reporting("put", key):
            return self._e_tag(await self._timed(obstore.put_async(self._store, key, value)))

    async def create(self, key: str, value: bytes) -> str | None:
        """Write a small object (`If-None-Match: *`), and return its entity tag; None when there is one already."""
        with self._reporting("put", key) as report:
            try:
                return self._e_tag(await self._timed(obstore.put_async(self._store, key, value, mode="create")))
            except AlreadyExistsError:
                report("conflict")
                return None

    async def replace(self, key: str, value: bytes, e_tag: str) -> str | None:
        """Replace one version of an object (`If-Match`), and return the new entity tag; None when it has changed."""
        version: UpdateVersion = {"version": e_tag} if self._has_generations else {"e_tag": e_tag}
        with self._reporting("put", key) as report:
            try:
                return self._e_tag(await self._timed(obstore.put_async(self._store, key, value, mode=version)))
            except (PreconditionError, AlreadyExistsError, FileNotFoundError):  # S3 reports a race as 409 Conflict
                report("conflict")
                return None

    async def delete(self, *keys: str) -> None:
        """Delete objects; those that do not exist are ignored."""
        with (
            self._reporting("delete", ""),
            contextlib.suppress(FileNotFoundError),
        ):  # some stores report what S3 ignores
            await self._timed(obstore.delete_async(self._store, keys))

    async def list(self, prefix: str) -> AsyncIterator[Entry]:
        """Yield the objects whose keys begin with `prefix` and a slash, a thousand for each request."""
        pages = aiter(obstore.list(self._store, prefix, chunk_size=_PAGE))
        while True:
            with self._reporting("list", ""):
                try:
                    page = await self._timed(anext(pages))
                except StopAsyncIteration:
                    return
            for meta in page:
                yield self._entry(meta)
            if len(page) < _PAGE:
                return

    # -- large objects ----------------------------------------------------------------------------------------------

    async def open(self, key: str, start: int = 0, end: int | None = None) -> ObjectBody | None:
        """Open an object from byte `start` to before `end` (None: to its end); None where there is none.

        The body of an object that ends at `start` or before is empty: it shows the size of the object. The time-out of
        the client applies to each read of the body.
        """
        options: GetOptions = {}
        if end is not None:
            options = {"range": (start, end)}
        elif start:
            options = {"range": {"offset": start}}
        with self._reporting("get", key) as report:
            try:
                result = await self._timed(obstore.get_async(self._store, key, options=options))
            except FileNotFoundError:
                report("absent")
                return None
            except BaseError:
                entry = await self._short(key, start)  # a store reports a range outside of an object in its own way
                if entry is None:
                    raise
                return ObjectBody(entry, start, iter(()))
        return ObjectBody(self._entry(result.meta), start, _received(result.stream(min_chunk_size=_CHUNK)))

    async def _short(self, key: str, start: int) -> Entry | None:
        """Return an object that ends at byte `start` or before, and None for others."""
        if not start:
            return None
        entry = self._entry(await self._timed(obstore.head_async(self._store, key)))
        return entry if entry.size <= start else None

    async def upload(self, key: str, path: Path) -> None:
        """Write the bytes of a file, in parts. Nobody can read the object before it is complete.

        Raises `StorageError` when the file cannot be read.
        """
        with self._reporting("upload", key):
            await upload_file(self._uploads, key, path)

    # -- failures ---------------------------------------------------------------------------------------------------

    async def ping(self, key: str, value: bytes) -> None:
        """Write an object as `put` does, also during a pause. If that does not take long, the bucket is not slow any
        more."""
        self._paused_until = 0.0
        begun = self._clock()
        await self.put(key, value)
        if self._clock() - begun < PATIENCE_SECONDS:
            self._slow_until = self._slow_seconds = 0.0

    async def in_time[Value](self, request: Callable[[], Awaitable[Value]]) -> Value:
        """Send requests to this bucket for which a client waits, and return their result.

        Raises `BucketUnavailable` when they take too long, and then at once for some time: each blob of an image would
        wait again.
        """
        if self.is_slow:
            raise BucketUnavailable("the bucket is slow")
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                result = await request()
        except TimeoutError as error:
            first, longest = _SLOW_SECONDS
            self._slow_seconds = min(max(first, 2 * self._slow_seconds), longest)
            self._slow_until = self._clock() + self._slow_seconds
            raise BucketUnavailable("the bucket is slow") from error
        self._slow_seconds = 0.0
        return result

    def _entry(self, meta: ObjectMeta) -> Entry:
        modified: datetime = meta["last_modified"]
        return Entry(meta["path"], meta["size"], modified.timestamp(), self._e_tag(meta))

    def _e_tag(self, described: ObjectMeta | PutResult) -> str:
        """Return what a condition names a version by: Google Cloud Storage has generations instead of entity tags."""
        return (described["version"] if self._has_generations else described["e_tag"]) or ""

    async def _timed[Value](self, work: Awaitable[Value]) -> Value:
        async with asyncio.timeout(_REQUEST_SECONDS):
            return await work

    @contextmanager
    def _reporting(self, kind: str, key: str) -> Iterator[Callable[[str], None]]:
        """Count a request for an object ("" for several), translate its failure, and pause after one."""
        if not self.is_usable:
            raise BucketUnavailable(self.closed_because or self.problem or "the bucket does not answer")
        outcome, success = "error", "ok"  # an error also when cancelled, or when a file to be uploaded cannot be read

        def report(other: str) -> None:
            nonlocal success
            success = other

        try:
            yield report
        except (BaseError, OSError) as error:  # TimeoutError is an OSError
            self.problem = failure_reason(error)
            self._paused_until = self._clock() + _PAUSE_SECONDS
            raise BucketUnavailable(f"the bucket does not answer: {self.problem}") from error
        else:  # also during a pause: the request was sent before it
            outcome = success
            self.problem = None
            self._paused_until = 0.0
        finally:
            self._observer.bucket_answered(kind, outcome, is_of_pulls=is_of_pulls(key))


def _received(stream: BytesStream) -> Iterator[memoryview]:
    """Yield the chunks of a body, in a thread; raises `BucketUnavailable` when the transfer breaks off."""
    while True:
        try:
            chunk = memoryview(next(stream))
        except StopIteration:
            return
        except (BaseError, OSError) as error:
            raise BucketUnavailable(f"transfer from the bucket broke off: {failure_reason(error)}") from error
        yield chunk
        del chunk  # the next one gets its memory, see `BucketTransfer`
