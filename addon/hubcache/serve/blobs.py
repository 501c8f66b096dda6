"""Blobs: from the store, from a running fill, or from a new one; a range far ahead is fetched beside the fill."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..oci.reference import ByteRange, parse_range
from ..store.store import Store
from ..transfer.coalesce import Coalescer
from ..transfer.fill import Fill, Fills
from ..transfer.sources import FileSource, FillSource, Source, UpstreamSource
from ..transfer.upstream import BlobBody, Upstream
from . import cache_status
from .memory import Memory
from .messages import Result

FAR_AHEAD = 32 << 20
"""Bytes: a range that begins further than this beyond a fill is fetched on its own. Lazy-pulling clients (stargz, SOCI,
nydus) read the end of a layer first; containerd's parallel fetch stays within a few chunks and shares the fill."""

_MAX_BESIDE = 4
"""Ranges fetched beside one fill at the same time; further ones wait for the fill. Keeps a client that asks for many
chunks from becoming many upstream requests."""


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

    def __init__(self, store: Store, memory: Memory, fills: Fills) -> None:
        self._store = store
        self._memory = memory
        self._fills = fills
        self._checks = Coalescer[tuple[str, str, Digest], int | None]()
        self._beside: dict[Digest, int] = {}

    async def get(self, upstream: Upstream, repository: str, digest: Digest, range_header: str | None) -> Blob:
        """A blob, or the part of it that `range_header` asks for; raises `RegistryError`."""
        known = self._store.has(digest) or self._fills.get(digest) is not None
        if known:
            await self._check(upstream, repository, digest)
        stored = await self._store.open_blob(digest)
        if stored is not None:
            part, start, end = _window(range_header, stored.size, stored.close)
            return Blob(stored.size, part, FileSource(stored, start, end), Result.HIT, cache_status.hit())
        running = self._fills.get(digest)
        fill = running or self._start(upstream, repository, digest)
        try:
            size = await fill.opened()
        except StorageError:
            return await self._stream(upstream, repository, digest, range_header)
        if running is None:
            await self._memory.link(upstream.registry.host, repository, {digest: size})
        part, start, end = _window(range_header, size)
        status = cache_status.fetched(stored=True, collapsed=running is not None)
        source = self._join(fill, upstream, repository, start, end)
        return Blob(size, part, source, Result.MISS, status)

    async def head(self, upstream: Upstream, repository: str, digest: Digest) -> Blob:
        """Whether there is such a blob, and its size. Never starts a fill."""
        size = self._store.blob_size(digest)
        if size is not None:
            await self._check(upstream, repository, digest)
            return Blob(size, None, None, Result.HIT, cache_status.hit())
        told = await upstream.head_blob(repository, digest)
        link = self._store.link(upstream.registry.host, repository, digest)
        size = told if told is not None else link.size if link is not None else None
        await self._memory.link(upstream.registry.host, repository, {digest: size})
        if size is None:
            blob = await self.get(upstream, repository, digest, None)
            if blob.source is not None:
                await blob.source.close()
            return Blob(blob.size, None, None, Result.MISS, blob.cache_status)
        return Blob(size, None, None, Result.MISS, cache_status.fetched(stored=False))

    async def _check(self, upstream: Upstream, repository: str, digest: Digest) -> None:
        """Raise unless the blob belongs to the repository: knowing a digest that another repository has is no right."""
        host = upstream.registry.host
        if self._store.link(host, repository, digest) is None:
            key = (host, repository, digest)
            size = await self._checks.run(key, lambda: upstream.head_blob(repository, digest))
            await self._memory.link(host, repository, {digest: size})

    def _start(self, upstream: Upstream, repository: str, digest: Digest) -> Fill:
        link = self._store.link(upstream.registry.host, repository, digest)
        return self._fills.start(
            digest, link.size if link else None, lambda start: upstream.open_blob(repository, digest, start)
        )

    def _join(self, fill: Fill, upstream: Upstream, repository: str, start: int, end: int) -> Source:
        """The fill's bytes, or the upstream's own for a range that the fill will not reach soon."""

        def direct(at: int, until: int) -> UpstreamSource:
            return self._direct(upstream, repository, fill.digest, at, until)

        if start - fill.readable > FAR_AHEAD and self._beside.get(fill.digest, 0) < _MAX_BESIDE:
            return _Counted(direct(start, end), self._beside, fill.digest)
        if fill.staged is None:
            return direct(start, end)
        return FillSource(fill, start, end, direct)

    async def _stream(self, upstream: Upstream, repository: str, digest: Digest, range_header: str | None) -> Blob:
        """Pass a blob on without the store, which cannot take it."""
        link = self._store.link(upstream.registry.host, repository, digest)
        size = link.size if link else None
        if size is None:
            size = await upstream.head_blob(repository, digest)
        if size is None:
            raise StorageError("the store is not usable and the upstream does not tell the blob's size")
        part, start, end = _window(range_header, size)
        source = self._direct(upstream, repository, digest, start, end)
        await source.open()
        return Blob(size, part, source, Result.MISS, cache_status.fetched(stored=False))

    @staticmethod
    def _direct(upstream: Upstream, repository: str, digest: Digest, start: int, end: int) -> UpstreamSource:
        def open_body(at: int, until: int) -> AbstractAsyncContextManager[BlobBody]:
            return upstream.open_blob(repository, digest, at, until)

        return UpstreamSource(open_body, start, end)


class _Counted:
    """A source that counts as one of those beside a fill while it is open."""

    def __init__(self, source: UpstreamSource, counts: dict[Digest, int], digest: Digest) -> None:
        self.origin = source.origin
        self._source = source
        self._counts = counts
        self._digest = digest
        counts[digest] = counts.get(digest, 0) + 1

    async def read(self) -> bytes:
        return await self._source.read()

    @property
    def finished(self) -> bool:
        return self._source.finished

    async def close(self) -> None:
        self._counts[self._digest] -= 1
        if self._counts[self._digest] == 0:
            del self._counts[self._digest]
        await self._source.close()


def _window(header: str | None, size: int, undo: Callable[[], None] | None = None) -> tuple[ByteRange | None, int, int]:
    """The range asked for, and the first and the end of the bytes to send; `undo` is called when there is none."""
    try:
        part = parse_range(header, size)
    except BaseException:
        if undo is not None:
            undo()
        raise
    return part, part.start if part else 0, part.end if part else size
