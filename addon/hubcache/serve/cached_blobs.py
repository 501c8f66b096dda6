"""Finds blobs in the store, joins running fills and starts new ones.

A range far ahead of what a fill has received is fetched by a request of its own.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from ..oci.digest import Digest, Verifier
from ..oci.errors import BlobUnknown, Denied, HubcacheError, RangeInvalid, StorageError, Unauthorized, Unavailable
from ..oci.reference import ByteRange, parse_range
from ..store.store import Store
from ..store.stored_blob import StoredBlob
from ..transfer.fill import Fill
from ..transfer.fill_slots import PREFETCH
from ..transfer.fills import Fills
from ..transfer.parallel_range import ParallelRange
from ..transfer.sources import FileSource, FillSource, Source, UpstreamSource
from . import cache_status
from .access import Access
from .best_effort import BestEffortWriter
from .blob_access import BlobAccess
from .messages import Result
from .repository_view import RepositoryView

FAR_AHEAD = 32 << 20
"""Bytes: a range that begins further than this beyond a fill is fetched on its own as soon as a slot is free.
Lazy-pulling clients (stargz, SOCI, nydus) read the end of a layer first."""

_NEAR_SECONDS = 0.5
"""How long a range less far ahead waits for the fill alone: containerd's parallel fetch stays within a few chunks, and
shares the fill."""


@dataclass(slots=True)
class BlobResult:
    """A blob to answer with: its whole `size`, the range to send (None = all), and the source (None for a HEAD)."""

    size: int
    part: ByteRange | None
    source: Source | None
    result: Result
    cache_status: str

    def describe_as_fetched(self) -> None:
        """Describe a stored blob as one that was fetched for this client."""
        if self.result is Result.HIT:
            self.result, self.cache_status = Result.MISS, cache_status.fetched(stored=True, collapsed=True)
            if self.source is not None:
                self.source.origin = FillSource.origin


class CachedBlobs:
    """Looks blobs up and starts fills.

    A stored blob, or one that is being filled, is used for a view only if it belongs to the view's registry (see
    `Access.belongs_to`); otherwise the blob is fetched from that registry as if it were not stored.
    """

    def __init__(self, store: Store, writer: BestEffortWriter, access: Access, fills: Fills) -> None:
        self._store = store
        self._writer = writer
        self._access = access
        self._fills = fills
        self._blob_access = BlobAccess(store, writer, access)

    async def get(
        self, view: RepositoryView, digest: Digest, range_header: str | None, *, bypass_store: bool = False
    ) -> BlobResult:
        """Return a blob, or the part of it that `range_header` selects; raises `RegistryError`."""
        if bypass_store:
            return await self._stream(view, digest, range_header)
        if self._is_available(view, digest):
            reason = await self._blob_access.check(view, digest)
            stored = await self._open(view, digest)
            if stored is not None:
                return _from_file(stored, range_header, reason)
            running = self._running(view, digest)
            if running is not None:
                self._fills.get(digest, view.client)
                return await self._join_running(running, view, range_header)
        if self._fills.get(digest) is not None:  # from another registry
            return await self._stream(view, digest, range_header)
        return await self._fill(view, digest, range_header)

    async def head(self, view: RepositoryView, digest: Digest) -> BlobResult:
        """Return a blob's size, without a source. Starts a fill only if the upstream does not report the size."""
        size = self._available_size(view, digest)
        if size is not None:
            reason = await self._blob_access.check(view, digest)
            if reason is None:
                return BlobResult(size, None, None, Result.HIT, cache_status.hit())
            return BlobResult(size, None, None, Result.STALE, cache_status.stale(0, reason))
        size = await self._blob_access.ask(view, digest)
        if size is None:
            blob = await self.get(view, digest, None)
            if blob.source is not None:
                await blob.source.close()
            return BlobResult(blob.size, None, None, Result.MISS, blob.cache_status)
        return BlobResult(size, None, None, Result.MISS, cache_status.fetched(stored=False))

    async def fetch(self, view: RepositoryView, digest: Digest) -> None:
        """Store a blob for later requests; raises `HubcacheError` when that fails."""
        if self._is_available(view, digest):
            await self._blob_access.check(view, digest)
        if self._is_stored(view, digest):
            return
        fill = self._fills.get(digest)
        if fill is not None:
            if fill.origin == view.host:
                return await fill.wait_stored()
            with suppress(HubcacheError):
                await fill.wait_stored()
            return await self.fetch(view, digest)
        self._access.raise_remembered_error(view.host, view.repository, view.request_key(str(digest)))
        fill = await self._start(view, digest, PREFETCH)
        if fill is None:
            return await self.fetch(view, digest)
        with fill.reading():
            await fill.wait_opened()
            # Recorded now, and not at the end of the fill: by then the registry may answer differently.
            await self._blob_access.record_accepted(view, digest, fill.answered_at)
            await fill.wait_stored()

    async def fetch_ahead(self, view: RepositoryView, digest: Digest, abandoned: asyncio.Event) -> None:
        """Begin to store a blob, or join a fill of it, as a reader until all bytes have arrived or `abandoned` is set:
        from then on the fill continues only as others without readers do. Raises `HubcacheError`.
        """
        fill = self._running(view, digest)
        starts = fill is None
        if fill is None:
            fill = await self.begin(view, digest)
            if fill is None:
                return
        with fill.reading():
            await fill.wait_opened()
            if starts:  # another fill may be one through another repository
                await self._blob_access.record_accepted(view, digest, fill.answered_at)
            await fill.wait_received(abandoned)
        if not abandoned.is_set():
            fill.raise_error()

    async def begin(self, view: RepositoryView, digest: Digest) -> Fill | None:
        """Begin to store a blob before a client requests it; None where it is stored, or a fill of it runs.

        Raises `HubcacheError`.
        """
        if self._fills.get(digest) is not None or self._is_stored(view, digest):
            return None
        self._access.raise_remembered_error(view.host, view.repository, view.request_key(str(digest)))
        return await self._start(view, digest, PREFETCH)

    async def forget(self, host: str, repository: str, digest: Digest) -> None:
        """Forget whether a blob belongs to a repository: it was pushed or deleted through this proxy."""
        await self._writer.forget_link(host, repository, digest)

    def fill_of(self, digest: Digest) -> Fill | None:
        """Return the running fill of the blob, from whichever registry; None if there is none."""
        return self._fills.get(digest)

    # -- available blobs ----------------------------------------------------------------------------------------------

    def _is_stored(self, view: RepositoryView, digest: Digest) -> bool:
        return self._store.has(digest) and self._access.belongs_to(view.host, digest)

    def _running(self, view: RepositoryView, digest: Digest) -> Fill | None:
        """Return the running fill, if it comes from the view's registry."""
        fill = self._fills.get(digest)
        return fill if fill is not None and fill.origin == view.host else None

    def _is_available(self, view: RepositoryView, digest: Digest) -> bool:
        return self._is_stored(view, digest) or self._running(view, digest) is not None

    def _available_size(self, view: RepositoryView, digest: Digest) -> int | None:
        size = self._store.blob_size(digest) if self._is_stored(view, digest) else None
        running = self._running(view, digest)
        return running.size if size is None and running is not None else size

    async def _open(self, view: RepositoryView, digest: Digest) -> StoredBlob | None:
        """Open the stored blob, and then check to which registry it belongs: it may be replaced before it is open."""
        try:
            stored = await self._store.open_blob(digest)
        except StorageError:  # a damaged file that could not be removed: fetch the blob as if it were not there
            return None
        if stored is not None and not self._access.belongs_to(view.host, digest):
            stored.close()
            return None
        return stored

    # -- fills --------------------------------------------------------------------------------------------------------

    async def _fill(self, view: RepositoryView, digest: Digest, range_header: str | None) -> BlobResult:
        """Start a fill with the view's credentials and return its bytes."""
        request_key = view.request_key(str(digest))
        change_number = self._access.raise_remembered_error(view.host, view.repository, request_key)
        try:
            fill = await self._start(view, digest, view.client)
            if fill is None:  # a request with other access rights has just started a fill
                return await self.get(view, digest, range_header)
            with fill.reading():
                size = await fill.wait_opened()
                await self._blob_access.record_accepted(view, digest, fill.answered_at)
                part, start, end = _selected(range_header, size)
                source = await self._join(fill, view, start, end)
        except StorageError:
            return await self._stream(view, digest, range_header)
        except (BlobUnknown, Unauthorized, Denied) as error:
            await self._blob_access.record_refused(view, digest, error, change_number)
            raise
        return BlobResult(size, part, source, Result.MISS, cache_status.fetched(stored=True))

    async def _join_running(self, fill: Fill, view: RepositoryView, range_header: str | None) -> BlobResult:
        """Return the bytes of a fill that another request started."""
        try:
            with fill.reading():
                size = await fill.wait_opened()
                part, start, end = _selected(range_header, size)
                source = await self._join(fill, view, start, end)
        except StorageError:
            return await self._stream(view, fill.digest, range_header)
        except (BlobUnknown, Unauthorized, Denied):  # the upstream refused the client that started it
            return await self.get(view, fill.digest, range_header)
        return BlobResult(size, part, source, Result.MISS, cache_status.fetched(stored=True, collapsed=True))

    async def _start(self, view: RepositoryView, digest: Digest, client: str) -> Fill | None:
        """Start a fill with the view's credentials, for `client`; None if another request has just started one."""
        link, was_stored = self._store.links.get(view.host, view.repository, digest), self._store.has(digest)
        if view.authorization is not None and not await self._writer.mark_private(digest):
            raise StorageError("cannot record that the blob is private")
        if self._fills.get(digest) is not None or (self._store.has(digest) and not was_stored):
            return None
        download = self._blob_access.downloader(view, digest)
        size = link.size if link else None
        on_verified = self._source_recorder(view, digest, stored=True)
        return self._fills.start(digest, size, download, client, view.host, on_verified, view.repository)

    def _source_recorder(self, view: RepositoryView, digest: Digest, *, stored: bool) -> Callable[[], Awaitable[None]]:
        """Return the function to call when the view's registry has delivered all bytes and they are verified.

        `stored`: they are about to be stored.
        """
        private = stored and view.authorization is not None

        async def record() -> None:
            recorded = await self._writer.record_source(view.host, view.repository, digest, None, private=private)
            if private and not recorded:
                raise StorageError("cannot record that the blob is private")

        return record

    async def _join(self, fill: Fill, view: RepositoryView, start: int, end: int) -> Source:
        """Return a source of the fill's bytes; a range that the fill will not reach soon comes from the upstream."""
        opener = self._blob_access.opener(view, fill.digest)
        if fill.staged is None or fill.staged.closed:  # it has ended meanwhile
            fill.raise_error()
            stored = await self._open(view, fill.digest)
            return UpstreamSource(opener, start, end) if stored is None else FileSource(stored, start, end)
        staged = fill.staged
        fallback: Callable[[int, int], Source] = lambda at, until: UpstreamSource(opener, at, until)  # noqa: E731
        try:
            fd = os.dup(staged.fd)
        except OSError as error:
            raise StorageError(f"cannot open the file of a running fill: {error.strerror or error}") from error
        usage = self._store.usage
        usage.begin_reading(fill.digest)  # the file stays on disk as long as it is open, also once it is in the store
        following = FillSource(fill, staged.path, fd, start, end, fallback, lambda: usage.end_reading(fill.digest))
        ahead = start - fill.readable
        if ahead <= 0:
            return following
        patience = 0.0 if ahead > FAR_AHEAD else _NEAR_SECONDS
        return ParallelRange(following, UpstreamSource(opener, start, end), patience)

    async def _stream(self, view: RepositoryView, digest: Digest, range_header: str | None) -> BlobResult:
        """Return a blob from the upstream without storing it: the store fails, or has it from another registry."""
        request_key = view.request_key(str(digest))
        change_number = self._access.raise_remembered_error(view.host, view.repository, request_key)
        link = self._store.links.get(view.host, view.repository, digest)
        size = link.size if link and link.size is not None else await self._blob_access.ask(view, digest)
        if size is None:
            raise Unavailable("nothing can be stored, and the upstream does not report the blob's size")
        part, start, end = _selected(range_header, size)
        verifier = Verifier(digest, size) if (start, end) == (0, size) else None
        opener = self._blob_access.opener(view, digest)
        async with AsyncExitStack() as stack:
            on_verified = self._source_recorder(view, digest, stored=False)
            source = UpstreamSource(opener, start, end, verifier, on_verified)
            stack.push_async_callback(source.close)
            try:
                await source.open()
            except (BlobUnknown, Unauthorized, Denied) as error:
                await self._blob_access.record_refused(view, digest, error, change_number)
                raise
            await self._blob_access.record_accepted(view, digest, source.answered_at)
            stack.pop_all()
        return BlobResult(size, part, source, Result.MISS, cache_status.fetched(stored=False))


def _from_file(stored: StoredBlob, range_header: str | None, reason: str | None) -> BlobResult:
    """Return a stored blob; `reason`: why the upstream could not confirm access to it, None if it did."""
    try:
        part, start, end = _selected(range_header, stored.size)
    except RangeInvalid:
        stored.close()
        raise
    source = FileSource(stored, start, end)
    if reason is None:
        return BlobResult(stored.size, part, source, Result.HIT, cache_status.hit())
    return BlobResult(stored.size, part, source, Result.STALE, cache_status.stale(0, reason))


def _selected(range_header: str | None, size: int) -> tuple[ByteRange | None, int, int]:
    """Return the requested range (RFC 9110 section 14.2), the first byte to send and the end, which is exclusive."""
    part = parse_range(range_header, size)
    return part, part.start if part else 0, part.end if part else size
