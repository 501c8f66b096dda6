"""Blobs: from the store, from a running fill, or from a new one; a range far ahead is fetched beside the fill."""

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
"""Bytes: a range that begins further than this beyond a fill is fetched on its own as soon as a place is free.
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


class CachedBlobs:
    """Looks blobs up and starts fills.

    What is stored, or on its way, is here for a view only if it is its registry's: see `Gate.shares`. Else it is
    fetched from the view's registry as if it were not here.
    """

    def __init__(self, store: Store, writer: BestEffortWriter, access: Access, fills: Fills) -> None:
        self._store = store
        self._writer = writer
        self._access = access
        self._fills = fills
        self._asking = BlobAccess(store, writer, access)

    async def get(
        self, view: RepositoryView, digest: Digest, range_header: str | None, *, bypass_store: bool = False
    ) -> BlobResult:
        """A blob, or the part of it that `range_header` asks for; raises `RegistryError`."""
        if bypass_store:
            return await self._stream(view, digest, range_header)
        if self._is_here(view, digest):
            reason = await self._asking.check(view, digest)
            stored = await self._open(view, digest)
            if stored is not None:
                return _from_file(stored, range_header, reason)
            running = self._running(view, digest)
            if running is not None:
                self._fills.get(digest, view.client)
                return await self._follow(running, view, range_header)
        if self._fills.get(digest) is not None:  # another registry's
            return await self._stream(view, digest, range_header)
        return await self._begin(view, digest, range_header)

    async def head(self, view: RepositoryView, digest: Digest) -> BlobResult:
        """Whether there is such a blob, and its size. Never starts a fill unless the upstream hides the size."""
        size = self._size_here(view, digest)
        if size is not None:
            reason = await self._asking.check(view, digest)
            if reason is None:
                return BlobResult(size, None, None, Result.HIT, cache_status.hit())
            return BlobResult(size, None, None, Result.STALE, cache_status.stale(0, reason))
        size = await self._asking.ask(view, digest)
        if size is None:
            blob = await self.get(view, digest, None)
            if blob.source is not None:
                await blob.source.close()
            return BlobResult(blob.size, None, None, Result.MISS, blob.cache_status)
        return BlobResult(size, None, None, Result.MISS, cache_status.fetched(stored=False))

    async def fetch(self, view: RepositoryView, digest: Digest) -> None:
        """Have a blob in the store for later; raises `HubcacheError` when that fails."""
        if self._is_here(view, digest):
            await self._asking.check(view, digest)
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
            # Not at the end: who may read it then is for the registry to say.
            await self._asking.record_accepted(view, digest)
            await fill.wait_stored()

    async def forget(self, host: str, repository: str, digest: Digest) -> None:
        """A blob was pushed or deleted through this proxy."""
        await self._writer.forget_link(host, repository, digest)

    # -- what is here -------------------------------------------------------------------------------------------------

    def _is_stored(self, view: RepositoryView, digest: Digest) -> bool:
        return self._store.has(digest) and self._access.belongs_to(view.host, digest)

    def _running(self, view: RepositoryView, digest: Digest) -> Fill | None:
        """The running fill, if it comes from the view's registry."""
        fill = self._fills.get(digest)
        return fill if fill is not None and fill.origin == view.host else None

    def _is_here(self, view: RepositoryView, digest: Digest) -> bool:
        return self._is_stored(view, digest) or self._running(view, digest) is not None

    def _size_here(self, view: RepositoryView, digest: Digest) -> int | None:
        size = self._store.blob_size(digest) if self._is_stored(view, digest) else None
        running = self._running(view, digest)
        return running.size if size is None and running is not None else size

    async def _open(self, view: RepositoryView, digest: Digest) -> StoredBlob | None:
        """The stored blob. Whose it is, is looked at when it is open: it may have come anew in between."""
        try:
            stored = await self._store.open_blob(digest)
        except StorageError:  # a bad file could not even be removed: fetch the blob as if it were not there
            return None
        if stored is not None and not self._access.belongs_to(view.host, digest):
            stored.close()
            return None
        return stored

    # -- fills --------------------------------------------------------------------------------------------------------

    async def _begin(self, view: RepositoryView, digest: Digest, range_header: str | None) -> BlobResult:
        """By a fill with the view's credentials."""
        since = self._access.raise_remembered_error(view.host, view.repository, view.request_key(str(digest)))
        try:
            fill = await self._start(view, digest, view.client)
            if fill is None:  # somebody else, whose rights are not the view's, was quicker
                return await self.get(view, digest, range_header)
            with fill.reading():
                size = await fill.wait_opened()
                await self._asking.record_accepted(view, digest)
                part, start, end = _window(range_header, size)
                source = await self._join(fill, view, start, end)
        except StorageError:
            return await self._stream(view, digest, range_header)
        except (BlobUnknown, Unauthorized, Denied) as error:
            await self._asking.record_refused(view, digest, error, since)
            raise
        return BlobResult(size, part, source, Result.MISS, cache_status.fetched(stored=True))

    async def _follow(self, fill: Fill, view: RepositoryView, range_header: str | None) -> BlobResult:
        """By a fill that somebody else began."""
        try:
            with fill.reading():
                size = await fill.wait_opened()
                part, start, end = _window(range_header, size)
                source = await self._join(fill, view, start, end)
        except StorageError:
            return await self._stream(view, fill.digest, range_header)
        except (BlobUnknown, Unauthorized, Denied):  # refused to whoever began it
            return await self.get(view, fill.digest, range_header)
        return BlobResult(size, part, source, Result.MISS, cache_status.fetched(stored=True, collapsed=True))

    async def _start(self, view: RepositoryView, digest: Digest, asker: str) -> Fill | None:
        """Begin a fill with the view's credentials, for that address; None when there is one by now, of whoever."""
        link, had = self._store.links.get(view.host, view.repository, digest), self._store.has(digest)
        if view.authorization is not None and not await self._writer.mark_private(digest):
            raise StorageError("cannot remember that the blob is private")
        if self._fills.get(digest) is not None or (self._store.has(digest) and not had):
            return None
        opener = self._asking.opener(view, digest)
        size = link.size if link else None
        gave = self._gave(view, digest, stored=True)
        return self._fills.start(digest, size, lambda at: opener(at, None), asker, view.host, gave)

    def _gave(self, view: RepositoryView, digest: Digest, *, stored: bool) -> Callable[[], Awaitable[None]]:
        """What to do when the view's registry gave all bytes, and they are right; `stored`: and are to be stored."""
        private = stored and view.authorization is not None

        async def note() -> None:
            if (
                not await self._writer.record_source(view.host, view.repository, digest, None, private=private)
                and private
            ):
                raise StorageError("cannot remember that the blob is private")

        return note

    async def _join(self, fill: Fill, view: RepositoryView, start: int, end: int) -> Source:
        """The fill's bytes, or the upstream's own for a range that the fill will not reach soon."""
        opener = self._asking.opener(view, fill.digest)
        if fill.staged is None or fill.staged.closed:  # it ended in between
            fill.raise_error()
            stored = await self._open(view, fill.digest)
            return UpstreamSource(opener, start, end) if stored is None else FileSource(stored, start, end)
        staged = fill.staged
        again: Callable[[int, int], Source] = lambda at, until: UpstreamSource(opener, at, until)  # noqa: E731
        try:
            fd = os.dup(staged.fd)
        except OSError as error:
            raise StorageError(f"cannot open a blob on its way: {error.strerror or error}") from error
        usage = self._store.usage
        usage.begin_reading(fill.digest)  # its file, once that is in the store, is on disk as long as it is open
        following = FillSource(fill, staged.path, fd, start, end, again, lambda: usage.end_reading(fill.digest))
        ahead = start - fill.readable
        if ahead <= 0:
            return following
        patience = 0.0 if ahead > FAR_AHEAD else _NEAR_SECONDS
        return ParallelRange(following, UpstreamSource(opener, start, end), patience)

    async def _stream(self, view: RepositoryView, digest: Digest, range_header: str | None) -> BlobResult:
        """Pass a blob on without the store, which cannot take it, or has it from another registry."""
        since = self._access.raise_remembered_error(view.host, view.repository, view.request_key(str(digest)))
        link = self._store.links.get(view.host, view.repository, digest)
        size = link.size if link and link.size is not None else await self._asking.ask(view, digest)
        if size is None:
            raise Unavailable("nothing can be stored, and the upstream does not tell the blob's size")
        part, start, end = _window(range_header, size)
        verifier = Verifier(digest, size) if part is None else None
        opener = self._asking.opener(view, digest)
        async with AsyncExitStack() as stack:
            source = UpstreamSource(opener, start, end, verifier, self._gave(view, digest, stored=False))
            stack.push_async_callback(source.close)
            try:
                await source.open()
            except (BlobUnknown, Unauthorized, Denied) as error:
                await self._asking.record_refused(view, digest, error, since)
                raise
            await self._asking.record_accepted(view, digest)
            stack.pop_all()
        return BlobResult(size, part, source, Result.MISS, cache_status.fetched(stored=False))


def _from_file(stored: StoredBlob, range_header: str | None, reason: str | None) -> BlobResult:
    part, start, end = _window(range_header, stored.size, stored.close)
    source = FileSource(stored, start, end)
    if reason is None:
        return BlobResult(stored.size, part, source, Result.HIT, cache_status.hit())
    return BlobResult(stored.size, part, source, Result.STALE, cache_status.stale(0, reason))


def _window(header: str | None, size: int, undo: Callable[[], None] | None = None) -> tuple[ByteRange | None, int, int]:
    """The range asked for, and the first and the end of the bytes to send; `undo` is called when there is none."""
    try:
        part = parse_range(header, size)
    except RangeInvalid:
        if undo is not None:
            undo()
        raise
    return part, part.start if part else 0, part.end if part else size
