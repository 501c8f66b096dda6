"""Blobs: from the store, from a running fill, or from a new one; a range far ahead is fetched beside the fill."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass

from ..oci.digest import Digest, Verifier
from ..oci.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    HeaderInvalid,
    RangeInvalid,
    RegistryError,
    StorageError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ..oci.reference import ByteRange, parse_range
from ..store.store import Store
from ..store.stored import StoredBlob
from ..transfer.beside import Beside
from ..transfer.coalesce import Coalescer
from ..transfer.fill import Fill
from ..transfer.fills import Fills
from ..transfer.slots import PREFETCH
from ..transfer.sources import FileSource, FillSource, OpenRange, Source, UpstreamSource
from ..transfer.upstream import BlobBody
from . import cache_status
from .gate import Gate
from .manifests import PATIENCE_SECONDS
from .memory import Memory
from .messages import Result
from .view import View

FAR_AHEAD = 32 << 20
"""Bytes: a range that begins further than this beyond a fill is fetched on its own as soon as a place is free.
Lazy-pulling clients (stargz, SOCI, nydus) read the end of a layer first."""

_NEAR_SECONDS = 0.5
"""How long a range less far ahead waits for the fill alone: containerd's parallel fetch stays within a few chunks, and
shares the fill."""


@dataclass(slots=True)
class Blob:
    """A blob to answer with: its whole `size`, the range to send (None = all), and the source (None for a HEAD)."""

    size: int
    part: ByteRange | None
    source: Source | None
    result: Result
    cache_status: str


class Blobs:
    """Looks blobs up and starts fills."""

    def __init__(self, store: Store, memory: Memory, gate: Gate, fills: Fills) -> None:
        self._store = store
        self._memory = memory
        self._gate = gate
        self._fills = fills
        self._checks = Coalescer[tuple[str, str, str, Digest], int | None]()

    async def get(self, view: View, digest: Digest, range_header: str | None, *, around_store: bool = False) -> Blob:
        """A blob, or the part of it that `range_header` asks for; raises `RegistryError`."""
        if around_store:
            if view.proves_first:
                await self._check(view, digest)
            return await self._stream(view, digest, range_header)
        reason = None
        if self._store.has(digest) or self._fills.get(digest) is not None or view.proves_first:
            reason = await self._check(view, digest)
        stored = await self._open(digest)
        if stored is not None:
            part, start, end = _window(range_header, stored.size, stored.close)
            source: Source = FileSource(stored, start, end)
            if reason is None:
                return Blob(stored.size, part, source, Result.HIT, cache_status.hit())
            return Blob(stored.size, part, source, Result.STALE, cache_status.stale(0, reason))
        running = self._fills.get(digest, view.client)
        reading = ExitStack()
        try:
            fill = running or await self._start(view, digest, view.client)
            if fill is None:  # somebody else, whose rights are not the view's, was quicker
                return await self.get(view, digest, range_header)
            reading.enter_context(fill.reading())
            size = await fill.opened()
            if running is None and not view.proves_first:
                await self._accepted(view, digest)
            part, start, end = _window(range_header, size)
            source = await self._join(fill, view, start, end)
        except StorageError:
            return await self._stream(view, digest, range_header)
        except (BlobUnknown, Unauthorized, Denied) as error:
            if running is not None:  # refused to whoever began it
                return await self.get(view, digest, range_header)
            await self._refused(view, digest, error)
            raise
        finally:
            reading.close()
        status = cache_status.fetched(stored=True, collapsed=running is not None)
        return Blob(size, part, source, Result.MISS, status)

    async def head(self, view: View, digest: Digest) -> Blob:
        """Whether there is such a blob, and its size. Never starts a fill unless the upstream hides the size."""
        size = self._store.blob_size(digest)
        running = self._fills.get(digest)
        if size is None and running is not None:
            size = running.size
        if size is not None:
            reason = await self._check(view, digest)
            if reason is None:
                return Blob(size, None, None, Result.HIT, cache_status.hit())
            return Blob(size, None, None, Result.STALE, cache_status.stale(0, reason))
        size = await self._ask(view, digest)
        if size is None:
            blob = await self.get(view, digest, None)
            if blob.source is not None:
                await blob.source.close()
            return Blob(blob.size, None, None, Result.MISS, blob.cache_status)
        return Blob(size, None, None, Result.MISS, cache_status.fetched(stored=False))

    async def fetch(self, view: View, digest: Digest) -> None:
        """Have a blob in the store for later; raises `HubcacheError` when that fails."""
        running = self._fills.get(digest)
        if self._store.has(digest) or running is not None or view.proves_first:
            await self._check(view, digest)
        if self._store.has(digest):
            return
        fill = running or await self._start(view, digest, PREFETCH)
        if fill is None:
            return await self.fetch(view, digest)
        await fill.ended()
        if running is None and not view.proves_first:
            await self._accepted(view, digest)

    async def _open(self, digest: Digest) -> StoredBlob | None:
        try:
            return await self._store.open_blob(digest)
        except StorageError:  # a bad file could not even be removed: fetch the blob as if it were not there
            return None

    async def _check(self, view: View, digest: Digest) -> str | None:
        """Raise unless the blob may be given: knowing a digest that another repository has is no right.

        None, or the reason why the upstream's word is not needed although it should have been asked (an outage).
        """
        if self._gate.permits(view.host, view.repository, digest, view.reader):
            return None
        spare = self._gate.permits(view.host, view.repository, digest, view.reader, outage=True)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if spare else None):
                await self._ask(view, digest)
        except (Unavailable, TooManyRequests, BadUpstream) as error:
            if not spare:
                raise
            return error.message
        except TimeoutError:
            return "upstream is slow"
        return None

    async def _ask(self, view: View, digest: Digest) -> int | None:
        """Whether the view may see the blob, by the upstream's word; its size if known."""
        self._gate.raise_missing(view.host, view.repository, view.question(str(digest)))
        try:
            told = await self._checks.run(
                (*view.key, digest), lambda: view.upstream.head_blob(view.repository, digest, view.reader)
            )
        except (BlobUnknown, Unauthorized, Denied) as error:
            await self._refused(view, digest, error)
            raise
        await self._accepted(view, digest)
        link = self._store.link(view.host, view.repository, digest)
        return told if told is not None or link is None else link.size

    async def _accepted(self, view: View, digest: Digest) -> None:
        """Remember that the view may see the blob. Not its size as told here: a wrong one would make it unfetchable."""
        await self._gate.accepted(view.host, view.repository, view.reader)
        await self._memory.link(view.host, view.repository, {digest: None})

    async def _refused(self, view: View, digest: Digest, error: RegistryError) -> None:
        if view.reader is None:
            await self._memory.unlink(view.host, view.repository, digest)
        if isinstance(error, BlobUnknown):
            await self._gate.doubted(view.host, view.repository, error)
        else:
            await self._gate.refused(view.host, view.repository, view.reader)
        self._gate.remember_missing(view.host, view.repository, view.question(str(digest)), error)

    async def _start(self, view: View, digest: Digest, asker: str) -> Fill | None:
        """Begin a fill with the view's credentials, for `asker`; None when there is one by now, of whoever."""
        self._gate.raise_missing(view.host, view.repository, view.question(str(digest)))
        link, had = self._store.link(view.host, view.repository, digest), self._store.has(digest)
        if view.reader is not None and not await self._memory.private(digest):
            raise StorageError("cannot remember that the blob is private")
        opener = await self._opener(view, digest)
        if self._fills.get(digest) is not None or (self._store.has(digest) and not had):
            return None
        return self._fills.start(digest, link.size if link else None, lambda start: opener(start, None), asker)

    async def _opener(self, view: View, digest: Digest) -> OpenRange:
        """How to open the blob upstream, with the first credentials that are accepted for it."""
        authorizations = await view.authorizations()

        @asynccontextmanager
        async def open_range(start: int, end: int | None) -> AsyncIterator[BlobBody]:
            async with AsyncExitStack() as stack:
                while True:
                    attempt = view.upstream.open_blob(view.repository, digest, start, end, authorizations[0])
                    try:
                        body = await stack.enter_async_context(attempt)
                        break
                    except (Unauthorized, Denied, TooManyRequests, HeaderInvalid):
                        if len(authorizations) == 1:
                            raise
                        del authorizations[0]
                yield body

        return open_range

    async def _join(self, fill: Fill, view: View, start: int, end: int) -> Source:
        """The fill's bytes, or those of a range that it will not reach soon, from where they are to be had first."""
        opener = await self._opener(view, fill.digest)
        if fill.staged is None or fill.staged.closed:  # it ended in between
            fill.raise_error()
            stored = await self._open(fill.digest)
            return UpstreamSource(opener, start, end) if stored is None else FileSource(stored, start, end)
        staged = fill.staged
        again: Callable[[int, int], Source] = lambda at, until: UpstreamSource(opener, at, until)  # noqa: E731
        try:
            fd = os.dup(staged.fd)
        except OSError as error:
            raise StorageError(f"cannot open a blob on its way: {error.strerror or error}") from error
        ledger = self._store.ledger
        ledger.hold(fill.digest)  # its file, once that is in the store, is on disk as long as it is open
        following = FillSource(fill, staged.path, fd, start, end, again, lambda: ledger.release(fill.digest))
        ahead = start - fill.readable
        if ahead <= 0:
            return following
        patience = 0.0 if ahead > FAR_AHEAD else _NEAR_SECONDS
        return Beside(following, UpstreamSource(opener, start, end), patience)

    async def _stream(self, view: View, digest: Digest, range_header: str | None) -> Blob:
        """Pass a blob on without the store, which cannot take it."""
        link = self._store.link(view.host, view.repository, digest)
        size = link.size if link and link.size is not None else await self._ask(view, digest)
        if size is None:
            raise Unavailable("nothing can be stored, and the upstream does not tell the blob's size")
        part, start, end = _window(range_header, size)
        verifier = Verifier(digest, size) if part is None else None
        source = UpstreamSource(await self._opener(view, digest), start, end, verifier)
        await source.open()
        return Blob(size, part, source, Result.MISS, cache_status.fetched(stored=False))


def _window(header: str | None, size: int, undo: Callable[[], None] | None = None) -> tuple[ByteRange | None, int, int]:
    """The range asked for, and the first and the end of the bytes to send; `undo` is called when there is none."""
    try:
        part = parse_range(header, size)
    except RangeInvalid:
        if undo is not None:
            undo()
        raise
    return part, part.start if part else 0, part.end if part else size
