"""Blobs that this node's own policy does not store, and that are stored until they are in the bucket.

A node whose store is full streams such a blob from the registry to each client. In a fleet, each node would do so:
with stores of 2 % of all content, 1.4 to 1.9 times the content was downloaded (`scripts/simulate --fleet`). Once it is
in the bucket, the blob is evicted when the space is needed.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack

from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..store.store import Store
from ..transfer.blob_body import BlobBody, BlobDownload
from ..transfer.fills import Fills
from ..transfer.sources import Source, UpstreamSource
from .blob_read import BlobRead
from .fill_reading import follow_fill

_LARGEST_SHARE = 4
"""Such blobs take at most one fourth of the store's capacity until their uploads have ended, unless there is only one:
else they would evict what clients request most while the bucket is slow."""

type Download = Callable[[BlobRead, int], AbstractAsyncContextManager[BlobDownload]]
"""Opens a blob of the fleet from a byte to its end, for a fill."""


class PassingBlobs:
    """The fills of blobs that the policy of this node refused."""

    def __init__(self, store: Store, fills: Fills) -> None:
        self._store = store
        self._fills = fills
        self._sizes: dict[Digest, int] = {}
        """The sizes of the blobs that are held, in bytes."""
        self._filling: set[Digest] = set()
        """Those of them that are filled; the others wait for their upload."""

    async def open(self, stack: AsyncExitStack, read: BlobRead, size: int, download: Download) -> BlobBody | None:
        """Start a fill, and return its bytes as they arrive; None where there is no space or slot for the blob, it
        waits for its upload, or another fill of it runs: that is one with other access rights.
        """
        digest, capacity = read.digest, self._store.capacity
        others = sum(self._sizes.values())
        has_space = not others or others + size <= capacity.max_bytes // _LARGEST_SHARE
        if not has_space or self._store.problem or digest in self._sizes or self._fills.get(digest) is not None:
            return None
        if not self._fills.has_free_slot():  # one node alone would send it to the client at once
            return None
        self._sizes[digest] = size
        self._filling.add(digest)
        self._store.usage.hold(digest)
        fill = self._fills.start(
            digest, size, lambda start: download(read, start), origin=read.host, repository=read.repository
        )
        fallback: Callable[[int, int], Source] = lambda start, end: UpstreamSource(read.open, start, end)  # noqa: E731
        try:
            with fill.reading():
                await fill.wait_opened()
                source = await follow_fill(self._store, fill, 0, size, fallback)
        except StorageError:
            return None
        if source is None:
            return None
        stack.push_async_callback(source.close)
        return BlobBody(_Content(source), "the fleet", 0, size, lambda _, __: None, fill.answered_at)

    def ended(self, digest: Digest) -> ExitStack:
        """Return what holds a blob whose fill has ended: once it is closed, the blob may be evicted.

        It holds nothing where the fill was not one of these.
        """
        hold = ExitStack()
        if digest in self._filling and self._fills.get(digest) is None:
            self._filling.remove(digest)
            hold.callback(self._release, digest)
        return hold

    def _release(self, digest: Digest) -> None:
        del self._sizes[digest]
        self._store.usage.release(digest)


class _Content:
    """The bytes of a source: an `HttpBody`."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def iter_any(self) -> AsyncIterator[bytes]:
        while not self._source.finished:
            yield await self._source.read()
