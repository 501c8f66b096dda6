"""Downloads blobs that other nodes of the fleet may have: from the bucket, from the node that fetches, or upstream.

A blob that no node has is fetched by the node that acquires its lease; the others receive its growing file. Where that
node cannot be reached, they wait until the blob is in the bucket. When the lease expires, one of them takes over. After
too long a wait they ask the registry themselves: sharing must not fail a pull that one node alone would serve.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

from ..oci.digest import Digest
from ..oci.errors import BadUpstream
from ..store.store import Store
from ..transfer.blob_body import BlobBody, BlobDownload
from ..transfer.fill import Fill
from ..transfer.fills import Fills
from . import keys
from .blob_objects import BlobObjects
from .blob_read import BlobRead
from .blobs_from_peers import BlobsFromPeers
from .bucket import Bucket, BucketUnavailable
from .bucket_bodies import BucketContent, BucketTransfer
from .fills_for_peers import FillsForPeers
from .leaders import Leaders
from .leases import Holder, Lease, Leases
from .local_cache import BeginFill
from .observer import FleetObserver
from .passing_blobs import PassingBlobs
from .peer_client import PeerClient
from .read_permission import Permits, ask_permission
from .shared_fill import SharedFill
from .uploads import Uploads

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two looks at the bucket and the lease, which grow while this node waits."""


class SharedBlobs:
    """The blobs of the fleet, as the fills of one node and its answers without a fill use them."""

    def __init__(
        self,
        bucket: Bucket,
        leases: Leases,
        peers: PeerClient,
        uploads: Uploads,
        store: Store,
        fills: Fills,
        permits: Permits,
        begin_fill: BeginFill,
        leaders: Leaders,
        observer: FleetObserver,
        *,
        shares_private: bool = False,
    ) -> None:
        """With `shares_private`, blobs that were read with a client's own credentials enter the bucket, too."""
        self._bucket = bucket
        self._objects = BlobObjects(bucket, store)
        self._leases = leases
        self._uploads = uploads
        self._fills = fills
        self._permits = permits
        self._observer = observer
        self._shares_private = shares_private
        self._shared: dict[Digest, SharedFill] = {}
        """The fills that run."""
        self.for_peers = FillsForPeers(store, fills, self._shared, permits, begin_fill)
        self._from_peers = BlobsFromPeers(bucket, leases, peers, self._objects, leaders, observer)
        self._passing = PassingBlobs(store, fills)
        self._releasing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for the last requests; leases are released by `Leases.close`."""
        await self._objects.close()
        await asyncio.gather(*self._releasing)

    # -- reads ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def download(self, read: BlobRead, start: int = 0) -> AsyncIterator[BlobDownload]:
        """Open a blob from byte `start` for a fill; `fill_ended` is to be called when the fill has ended."""
        if not self._is_shared(read):
            async with read.download(start) as body:
                yield body
            return
        fill = self._shared_fill(read)
        fill.begin_attempt(start)
        async with AsyncExitStack() as stack:
            found = await self._find(stack, fill, read, start)
            if found is None:
                found = await stack.enter_async_context(read.download(start))
                fill.origins.add("upstream")
            yield found

    @asynccontextmanager
    async def open(self, read: BlobRead, start: int = 0, end: int | None = None) -> AsyncIterator[BlobBody]:
        """Open a blob from byte `start` to before `end`, for an answer that this node does not store.

        A whole blob comes from the bucket, else from the registry. One that the bucket lacks is stored until it is
        uploaded, see `PassingBlobs`: each node would otherwise download it for each of its clients. A part comes from
        the registry alone: the bytes of the bucket can only be verified as a whole.
        """
        async with AsyncExitStack() as stack:
            body = await self._find_whole(stack, read, end) if self._is_shared(read) and not start else None
            if body is None:
                body = await stack.enter_async_context(read.open(start, end))
            yield body

    def _is_shared(self, read: BlobRead) -> bool:
        return read.is_public or self._shares_private

    async def _find_whole(self, stack: AsyncExitStack, read: BlobRead, end: int | None) -> BlobBody | None:
        """Return a body of the bytes before `end`, from the bucket or a fill, if these are the whole blob."""
        stated = self._objects.stated_size(read)
        if self._objects.is_distrusted(read.digest) or (end is not None and stated not in (None, end)):
            return None
        permission = await ask_permission(read, self._permits)
        if not permission.is_given:
            return None
        try:
            found = await self._objects.open(read)
        except BucketUnavailable:
            return None
        if found is None:
            if not read.is_public or end is None or end != stated:
                return None
            return await self._passing.open(stack, read, end, self.download)
        size = found.entry.size
        if self._objects.is_wrong(read, size) or end not in (None, size):
            return None
        received: Callable[[int], None] = lambda count: self._observer.bytes_received("bucket", count)  # noqa: E731
        distrust: Callable[[], None] = lambda: self._objects.distrust(read.digest, private=not read.is_public)  # noqa: E731
        content = BucketContent(found.chunks, read, size, received, distrust)
        return BlobBody(content, "the bucket", 0, size, lambda _, __: None, permission.answered_at)

    def _shared_fill(self, read: BlobRead) -> SharedFill:
        """Return the state of the fill that reads a blob.

        A fill that begins after another one was cancelled may have other access rights. It takes over the lease of a
        public blob, and nothing that the registry has permitted to the other one.
        """
        earlier = self._shared.get(read.digest)
        if earlier is not None and earlier.access == read.access:
            return earlier
        fill = self._shared[read.digest] = SharedFill(read.access)
        if earlier is not None:
            fill.origins |= earlier.origins
            if read.is_public:
                fill.lease, earlier.lease = earlier.lease, None
            self._release(earlier)
        return fill

    # -- sources of a fill ------------------------------------------------------------------------------------------

    async def _find(self, stack: AsyncExitStack, fill: SharedFill, read: BlobRead, start: int) -> BlobDownload | None:
        """Return a body from the bucket or another node; None when this node is to ask the registry."""
        if fill.is_fetching or fill.has_waited_enough or self._objects.is_distrusted(read.digest):
            return None
        if fill.permission is None:
            fill.permission = await ask_permission(read, self._permits)
        if not fill.permission.is_given:
            return None
        found = await self._from_peers.open_at_leader(stack, fill, read, start)
        if found is not None:
            return found
        try:
            found = await self._from_bucket(fill, read, start)
            if found is None and read.is_public:
                found = await self._from_fleet(stack, fill, read, start)
        except BucketUnavailable:
            return None
        return found

    async def _from_bucket(self, fill: SharedFill, read: BlobRead, start: int) -> BlobDownload | None:
        if not fill.may_use_bucket(start):
            return None
        looked_at = time.monotonic()
        found = await self._objects.open(read, start)
        if found is None:
            fill.looked_at, fill.bucket_at = looked_at, None
            return None
        size = found.entry.size
        if self._objects.is_wrong(read, size) or 0 < size <= start:
            fill.is_object_wrong = True
            return None
        fill.origins.add("bucket")
        return fill.download(BucketTransfer(found.chunks), "bucket", start, size, self._observer)

    async def _from_fleet(
        self, stack: AsyncExitStack, fill: SharedFill, read: BlobRead, start: int
    ) -> BlobDownload | None:
        """Acquire the lease, or wait for the bytes from its holder or the bucket.

        Returns None when the lease is acquired, or after too long a wait.
        """
        name, pause, loop = keys.blob_lease(read.digest), _FIRST_PAUSE, asyncio.get_running_loop()
        lost, fill.lease = fill.lease, None
        if lost is not None:
            await self._bucket.in_time(lost.release)
        holder: Lease | Holder | None = await self._bucket.in_time(lambda: self._leases.acquire(name))
        while isinstance(holder, Holder):
            begun = loop.time()
            if self._leases.is_own(holder):
                return None  # the upload of an earlier fill has the lease
            body = await self._from_peers.open_at_holder(stack, fill, read, start, holder)
            if body is not None or fill.has_waited_enough:
                return body
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - nodes shall not ask at the same time
            pause = min(2 * pause, _LONGEST_PAUSE)
            body = await self._from_bucket(fill, read, start)
            if body is not None:
                return body
            holder = await self._bucket.in_time(lambda: self._leases.holder(name))
            holder = holder or await self._bucket.in_time(lambda: self._leases.acquire(name))
            fill.waited += loop.time() - begun
        fill.lease = holder
        if holder is not None and holder.shows_absence_since(fill.looked_at):
            return None
        body = await self._from_bucket(fill, read, start)  # stored since the last look
        if body is not None:
            self._release(fill)
        return body

    # -- end of a fill ----------------------------------------------------------------------------------------------

    def fill_ended(self, ended: Fill) -> None:
        """Upload what came from the registry, or release the lease, once a fill has ended."""
        with self._passing.ended(ended.digest) as hold:
            self._fill_ended(ended, hold)

    def _fill_ended(self, ended: Fill, hold: ExitStack) -> None:
        if self._fills.get(ended.digest) is not None:
            return  # a new fill of the blob has begun meanwhile, and continues with the lease
        fill = self._shared.pop(ended.digest, None)
        if fill is None:
            return
        private = not fill.is_public
        if ended.error is None and "upstream" in fill.origins:
            replaces = fill.is_object_wrong or self._objects.is_distrusted(ended.digest)
            if "bucket" in fill.origins and not replaces:
                self._release(fill)  # the bucket has the blob: without a lease, this is checked before the upload
            self._uploads.add(ended.digest, private=private, replaces=replaces, lease=fill.lease, hold=hold.pop_all())
            return
        if isinstance(ended.error, BadUpstream):
            if "bucket" in fill.origins:
                self._objects.distrust(ended.digest, private=private)
            elif fill.origins == {"peer"}:  # a node cuts short what its registry sends when that is wrong
                self._objects.distrust(ended.digest, private=private, deletes=False)
            elif "peer" in fill.origins:
                self._objects.distrust_peers(ended.digest)
        self._release(fill)

    def _release(self, fill: SharedFill) -> None:
        lease, fill.lease = fill.lease, None
        if lease is not None:
            task = asyncio.create_task(lease.release())
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
