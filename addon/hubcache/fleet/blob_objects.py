"""The blobs in the bucket, as this node reads them: with a bound on waiting, and without those that proved wrong."""

import asyncio
import contextlib

from cachetools import TTLCache

from ..oci.digest import Digest
from ..store.store import Store
from . import keys
from .blob_read import BlobRead
from .bucket import Bucket, BucketUnavailable, ObjectBody

_DISTRUST_SECONDS = 600.0
"""How long a blob is fetched from its registry alone after the fleet gave wrong bytes."""
_MAX_DISTRUSTED = 1000


class BlobObjects:
    """The objects that contain blobs."""

    def __init__(self, bucket: Bucket, store: Store) -> None:
        self._bucket = bucket
        self._store = store
        self._distrusted: TTLCache[Digest, None] = TTLCache(_MAX_DISTRUSTED, _DISTRUST_SECONDS)
        """Blobs of which the bucket or another node gave wrong bytes."""
        self._wrong_from_peers: TTLCache[Digest, None] = TTLCache(_MAX_DISTRUSTED, _DISTRUST_SECONDS)
        """Blobs of which another node, or the registry after it, gave wrong bytes."""
        self._deletions: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for the last requests."""
        await asyncio.gather(*self._deletions)

    async def open(self, read: BlobRead, start: int = 0) -> ObjectBody | None:
        """Open a blob's object from byte `start` on; None where there is none.

        Raises `BucketUnavailable`, also when the bucket is slow.
        """
        key = keys.blob(read.digest, private=not read.is_public)
        return await self._bucket.in_time(lambda: self._bucket.open(key, start))

    def stated_size(self, read: BlobRead) -> int | None:
        """Return the size that a manifest states for the blob."""
        link = self._store.links.get(read.host, read.repository, read.digest)
        return None if link is None else link.size

    def is_wrong(self, read: BlobRead, size: int) -> bool:
        """Whether a manifest states another size for the blob."""
        return self.stated_size(read) not in (None, size)

    def is_distrusted(self, digest: Digest) -> bool:
        """Whether the fleet gave wrong bytes for this blob not long ago."""
        return digest in self._distrusted

    def is_peer_distrusted(self, digest: Digest) -> bool:
        """Whether no other node is to be asked for this blob, only the bucket: see `distrust_peers`."""
        return digest in self._wrong_from_peers

    def distrust_peers(self, digest: Digest) -> None:
        """Ask no other node for a blob for some time: it is not known whether it or the registry gave wrong bytes."""
        self._wrong_from_peers[digest] = None

    def distrust(self, digest: Digest, *, private: bool, deletes: bool = True) -> None:
        """Use no bytes of the fleet for a blob for some time; with `deletes`, delete the object, which is wrong."""
        self._distrusted[digest] = None
        if not deletes:
            return
        task = asyncio.create_task(self._delete(keys.blob(digest, private=private)))
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)

    async def _delete(self, key: str) -> None:
        with contextlib.suppress(BucketUnavailable):
            await self._bucket.delete(key)
