"""Downloads blobs from the node that has fetched their manifest, or from the one that holds their lease."""

import asyncio
import time
from contextlib import AsyncExitStack

from ..oci.digest import Digest
from ..transfer.blob_body import BlobDownload
from . import keys
from .blob_objects import BlobObjects
from .blob_read import BlobRead
from .bucket import Bucket, BucketUnavailable
from .leaders import Leaders
from .leases import Holder, Leases
from .observer import FleetObserver
from .peer_client import PeerClient, PeerUnavailable
from .peer_transfer import PeerTransfer
from .shared_fill import SharedFill

_ANSWER_SECONDS = 3.0
"""Longest wait for the node that fetched the manifest, which answers sooner, see `peer_server`."""

_AVOID_SECONDS = 5.0
"""A node that could not be reached is not tried again for this time."""


class BlobsFromPeers:
    """The blobs of other nodes, as the fills of one node read them."""

    def __init__(
        self,
        bucket: Bucket,
        leases: Leases,
        peers: PeerClient,
        objects: BlobObjects,
        leaders: Leaders,
        observer: FleetObserver,
    ) -> None:
        self._bucket = bucket
        self._leases = leases
        self._peers = peers
        self._objects = objects
        self._leaders = leaders
        self._observer = observer

    async def open_at_leader(
        self, stack: AsyncExitStack, fill: SharedFill, read: BlobRead, start: int
    ) -> BlobDownload | None:
        """Return the body that the node sends which has fetched the blob's manifest; None where it has no bytes now.

        That saves both this node's requests to the bucket and those for a lease. Once is enough: when the body breaks
        off, its node is found as the holder of the lease.
        """
        leader = self._leaders.find(read.host, read.repository) if fill.asks_leader and read.is_public else None
        if leader is None:
            return None
        fill.asks_leader, fill.is_asking_leader = False, True
        holder = Holder(leader.id, leader.address, 0.0)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await self._open_at(stack, fill, read, start, holder, (read.host, read.repository))
        except (PeerUnavailable, TimeoutError):
            self._leaders.avoid(leader.id)
            return None
        finally:
            fill.is_asking_leader = False

    async def open_at_holder(
        self, stack: AsyncExitStack, fill: SharedFill, read: BlobRead, start: int, holder: Holder
    ) -> BlobDownload | None:
        """Return the body that the holder of the lease sends; None when it cannot be reached or has not got it."""
        now = time.monotonic()
        if not holder.address or not fill.may_ask(holder.address, now):
            return None
        try:
            return await self._open_at(stack, fill, read, start, holder)
        except PeerUnavailable:
            fill.avoided[holder.address] = now + _AVOID_SECONDS
        except TimeoutError:  # it has not begun to receive the blob itself
            pass
        return None

    async def _open_at(
        self,
        stack: AsyncExitStack,
        fill: SharedFill,
        read: BlobRead,
        start: int,
        holder: Holder,
        origin: tuple[str, str] | None = None,
    ) -> BlobDownload | None:
        """Open the blob at another node; raises as `PeerClient.open_blob`."""
        if self._objects.is_peer_distrusted(read.digest):
            return None
        async with AsyncExitStack() as opening:
            opened = self._peers.open_blob(holder.address, read.digest, start, origin)
            body = await opening.enter_async_context(opened)
            if body is None or (body.size is not None and self._objects.is_wrong(read, body.size)):
                return None
            stack.push_async_callback(opening.pop_all().aclose)
        fill.origins.add("peer")
        transfer = PeerTransfer(body, holder.address, start, fill, lambda: self._is_renewed(read.digest, holder))
        return fill.download(transfer, "peer", body.start, body.size, self._observer)

    async def _is_renewed(self, digest: Digest, holder: Holder) -> bool:
        """Whether a node still holds the lease of a blob, as far as that can be found out."""
        try:
            now = await self._bucket.in_time(lambda: self._leases.holder(keys.blob_lease(digest)))
        except BucketUnavailable:
            return True
        return now is not None and now.node == holder.node
