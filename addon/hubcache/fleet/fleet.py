"""A node's part in its fleet: composes the bucket, the peers, and the upstreams that ask them before the registry."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

from ..oci.account import Account
from ..oci.digest import Digest
from ..oci.registry import Registry
from ..transfer.challenge import Challenge
from ..transfer.tokens import Tokens
from ..transfer.upstream import Upstream
from ..transfer.upstream_client import UpstreamClient
from . import keys
from .bucket import Bucket, BucketUnavailable
from .bucket_store import BucketStore
from .clock import BucketClock
from .connection import FleetConnection
from .content_changes import ContentChanges
from .events import Events
from .fleet_counts import FleetCounts
from .fleet_options import FleetTimes
from .fleet_status import FleetStatus, LeaseStatus, NodeStatus, SweepStatus, UploadStatus
from .joining import Joining
from .leaders import Leaders
from .lease_list import list_leases
from .lease_waits import LeaseWaits
from .leases import Leases
from .local_cache import LocalCache
from .membership import Membership
from .peer_client import PeerClient
from .peer_server import PeerServer
from .popularity import NodePopularity
from .probe import check_conditional_writes
from .room import Room
from .secret import load_secret
from .shared_answers import SharedAnswers
from .shared_blobs import SharedBlobs
from .shared_upstream import SharedUpstream
from .sharing import Sharing
from .sweeper import Sweeper
from .uploads import Uploads

logger = logging.getLogger("hubcache")

_LEAVE_SECONDS = 2.0
"""Longest time that the bucket delays the start of a shutdown, which then waits for downloads and uploads."""

_CLOSE_SECONDS = 5.0
"""After this time, requests to the bucket at the end of a node are given up."""


class Fleet:
    """The fleet as one node sees it, from `start` to `close`.

    Before `start` and while the bucket does not answer, the node works alone: requests to the bucket fail at once.
    """

    def __init__(self, connection: FleetConnection, cache: LocalCache, times: FleetTimes) -> None:
        """To be called in the event loop."""
        options, me = connection.options, connection.me
        self._connection = connection
        self._cache = cache
        self._counts = counts = FleetCounts()
        self._bucket = bucket = self._open_bucket(connection.stores[0])
        self._clock = clock = BucketClock()
        self._membership = members = Membership(bucket, clock, me)
        self._leases = leases = Leases(bucket, clock, me)
        self._peers = PeerClient(f"hubcache/{options.version}")
        self._sweeper = Sweeper(bucket, clock, members, leases, options.capacity, times.half_life, times.expire_after)
        self._room = Room(bucket, clock, members, options.capacity, self._sweeper.make_room)
        self._popularity = NodePopularity(bucket, clock, me.id, times.half_life, self._may_be_in_bucket)
        self._uploads = Uploads(bucket, cache.store, self._room, counts)
        leaders = Leaders(members)
        self._blobs = SharedBlobs(
            *(bucket, leases, self._peers, self._uploads, cache.store, cache.fills),
            *(cache.permits, cache.begin_fill, leaders, counts),
            shares_private=options.stores_private,
        )
        self._answers = SharedAnswers(bucket, leases, LeaseWaits(leases, self._peers, leaders))
        self._sharing = Sharing(self._answers, clock, me.id, self._pause_began, cache.visibility, leaders)
        self._changes = ContentChanges(self._sharing, cache.content_changed)
        self._events = Events(members, self._peers, self._changes.receive, cache.pause)
        self._peer_server = PeerServer(cache.store, cache.fills, self._blobs.for_peers, leases, self._events.receive)
        self._joining = Joining(options.bucket, bucket, self._examine, self._join)
        self._events.on_joined = members.beat_soon
        cache.store.popularity.on_request = self._popularity.count_request
        cache.fills.on_ended = self._blobs.fill_ended
        self.apply(times)

    def apply(self, times: FleetTimes) -> None:
        """Apply option values while the node runs."""
        self._sweeper.half_life = self._popularity.half_life = times.half_life
        self._sweeper.expire_after = times.expire_after
        lifetimes = self._sharing.lifetimes
        lifetimes.tag, lifetimes.error, lifetimes.max_stale = times.tag_ttl, times.negative_ttl, times.max_stale

    def _open_bucket(self, store: BucketStore) -> Bucket:
        return Bucket(store.requests, self._counts, uploads=store.uploads)

    def _may_be_in_bucket(self, digest: Digest) -> bool:
        return self._connection.options.stores_private or not self._cache.store.private.has(digest)

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the fleet, or work alone until the bucket answers.

        Raises `ConfigError` when the bucket answers but does not keep the promises on which leases depend.
        """
        await self._peer_server.start(self._connection.listener)
        await self._joining.start()

    async def _examine(self) -> None:
        await check_conditional_writes(*(self._open_bucket(store) for store in self._connection.stores))

    async def _join(self) -> None:
        self._peers.secret = self._peer_server.secret = await load_secret(self._bucket)
        await self._membership.start()
        self._events.report_join()
        for part in (self._room, self._popularity, self._sweeper):
            await part.start()
        me, others = self._connection.me, len(self._membership.nodes) - 1
        bucket = self._connection.options.bucket
        logger.info("hubcache: fleet of %s: this is %s at %s, others: %d", bucket, me.id, me.address, others)

    async def stop_background_work(self) -> None:
        """Announce that this node leaves, when its shutdown has begun. Uploads continue until `close`."""
        self._blobs.for_peers.is_stopping = True
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                for part in (self._joining, self._sweeper, self._membership):
                    await part.close()
        except TimeoutError:
            self._close_bucket()

    async def close(self) -> None:
        """Give up uploads that are not complete, release all leases, and end the connections of peers.

        All parts are closed, also when one of them raises.
        """
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._close_bucket)
        if self._bucket.problem is not None:
            self._close_bucket()
        async with AsyncExitStack() as stack:  # closes the last one first
            stack.callback(self._connection.close)
            for part in (
                *(self._peers, self._peer_server, self._leases),
                *(self._popularity, self._room, self._blobs, self._uploads, self._answers, self._changes, self._events),
            ):
                stack.push_async_callback(part.close)
            await self.stop_background_work()

    def _close_bucket(self) -> None:
        """Let all further requests fail at once: a bucket that is slow must not hold up the stop."""
        self._bucket.closed_because = "this node is stopping"

    def _pause_began(self, host: str, kind: str, seconds: float) -> None:
        self._events.report_pause(host, kind, seconds)

    @property
    def is_uploading(self) -> bool:
        """Whether content is uploaded, or waits for that and the bucket answers."""
        return self._uploads.waiting > 0 and self._bucket.is_usable

    def upstream(
        self,
        registry: Registry,
        client: UpstreamClient,
        tokens: Tokens,
        learned: Callable[[Registry, Challenge], None],
        account: Account | None,
    ) -> Upstream:
        """Return an upstream that asks the fleet before the registry; the arguments are those of `Upstream`."""
        return SharedUpstream(registry, client, tokens, learned, account, self._sharing, self._blobs)

    async def content_changed(
        self, host: str, repository: str, reference: str, is_blob: bool, subject: str | None
    ) -> None:
        """Report a push or delete through this node to all nodes; the arguments are those of `ContentChanged`.

        Returns when the others have received it, or after a second.
        """
        await self._changes.report(self._events, host, repository, reference, is_blob, subject)

    # -- for users --------------------------------------------------------------------------------------------------

    async def list_leases(self, most: int) -> list[LeaseStatus] | None:
        """Return at most so many of the leases of all nodes; None while the bucket does not answer."""
        try:
            return await list_leases(self._bucket, self._clock, most)
        except BucketUnavailable:
            return None

    async def purge(
        self, tags: Iterable[tuple[str, str, str]], repository: tuple[str, str] | None, digests: Iterable[Digest]
    ) -> bool:
        """Remove content from the bucket; returns whether the bucket answered. Other nodes keep what they have stored.

        `tags` are registry's host, repository and name. Manifests are removed for one repository, given by registry's
        host and name; blobs for all.
        """
        digests = tuple(digests)
        found = [keys.tag(*tag) for tag in tags]
        found += [keys.blob(digest, private=private) for digest in digests for private in (False, True)]
        if repository is not None:
            found += [keys.manifest(*repository, digest) for digest in digests]
        try:
            await self._bucket.delete(*found)
        except BucketUnavailable:
            return False
        return True

    def status(self) -> FleetStatus:
        """Return the present state, without a request to the bucket."""
        counts, me, options = self._counts, self._connection.me, self._connection.options
        uploads = counts.uploads
        return FleetStatus(
            bucket=options.bucket,
            node=me.id,
            problem=self._problem(),
            capacity=options.capacity,
            nodes=tuple(
                NodeStatus(each.id, each.address, each.version, is_own=each.id == me.id)
                for each in self._membership.nodes
            ),
            leases=self._leases.held,
            requests={kind: dict(outcomes) for kind, outcomes in counts.requests.items()},
            requests_of_pulls=dict(counts.requests_of_pulls),
            received={tier: counts.received[tier] for tier in ("bucket", "peer")},
            uploads=UploadStatus(
                self._uploads.waiting, uploads["stored"], uploads["refused"], uploads["failed"], counts.uploaded_bytes
            ),
            sweep=self._sweep(),
        )

    def _problem(self) -> str | None:
        """Return why this node works alone at present."""
        slow = "it takes too long to answer" if self._bucket.is_slow else None
        return self._bucket.closed_because or self._bucket.problem or slow

    def _sweep(self) -> SweepStatus | None:
        state = self._sweeper.state
        if state is None:
            return None
        sweep = state.sweep
        objects = sum(sweep.objects.values())
        return SweepStatus(self._clock.to_local(sweep.at), sweep.by, state.used, objects, sweep.deleted)
