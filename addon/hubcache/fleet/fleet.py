"""A node's part in its fleet: composes the bucket, the peers, and the upstreams that ask them before the registry."""

import logging
from collections.abc import Callable, Iterable, Mapping

from ..oci.account import Account
from ..oci.digest import Digest
from ..oci.registry import Registry
from ..transfer.challenge import Challenge
from ..transfer.fill import Fill
from ..transfer.tokens import Tokens
from ..transfer.upstream import Upstream
from ..transfer.upstream_client import UpstreamClient
from . import keys
from .bucket import Bucket, BucketUnavailable
from .bucket_store import BucketStore
from .clock import BucketClock
from .connection import FleetConnection
from .fleet_counts import FleetCounts
from .fleet_status import FleetStatus, LeaseStatus, NodeStatus, UploadStatus
from .joining import Joining
from .lease_list import list_leases
from .leases import Leases
from .local_cache import LocalCache
from .membership import Membership
from .peer_client import PeerClient
from .peer_server import PeerServer
from .probe import check_conditional_writes
from .secret import load_secret

logger = logging.getLogger("hubcache")


class Fleet:
    """The fleet as one node sees it, from `start` to `close`.

    Before `start` and while the bucket does not answer, the node works alone: requests to the bucket fail at once.
    """

    def __init__(self, connection: FleetConnection, cache: LocalCache) -> None:
        self._connection = connection
        self._cache = cache
        self._counts = FleetCounts()
        self._bucket = self._open_bucket(connection.stores[0])
        self._clock = BucketClock()
        self._membership = Membership(self._bucket, self._clock, connection.me)
        self._leases = Leases(self._bucket, self._clock, connection.me)
        self._peer_server = PeerServer(cache.store, cache.fills, self._receive_event)
        self._peers = PeerClient(f"hubcache/{connection.options.version}")
        self._joining = Joining(connection.options.bucket, self._bucket, self._examine, self._join)

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the fleet, or work alone until the bucket answers.

        Raises `ConfigError` when the bucket answers but does not keep the promises on which leases depend.
        """
        await self._peer_server.start(self._connection.listener)
        await self._joining.start()

    async def _examine(self) -> None:
        await check_conditional_writes(*(self._open_bucket(store) for store in self._connection.stores))

    def _open_bucket(self, store: BucketStore) -> Bucket:
        return Bucket(store.requests, self._counts, uploads=store.uploads)

    async def _join(self) -> None:
        self._peers.secret = self._peer_server.secret = await load_secret(self._bucket)
        await self._membership.start()

    async def stop_background_work(self) -> None:
        """Announce that this node leaves, when its shutdown has begun. Uploads continue until `close`."""
        await self._joining.close()
        await self._membership.close()

    async def close(self) -> None:
        """Give up uploads that are not complete, release all leases, and end the connections of peers."""
        await self.stop_background_work()
        await self._leases.close()
        await self._peer_server.close()
        await self._peers.close()
        self._connection.close()

    async def _receive_event(self, fields: Mapping[str, object]) -> None:
        """Act on the event of another node."""

    @property
    def is_uploading(self) -> bool:
        """Whether content waits for its upload, or is uploaded."""
        return False

    def upstream(
        self,
        registry: Registry,
        client: UpstreamClient,
        tokens: Tokens,
        learned: Callable[[Registry, Challenge], None],
        account: Account | None,
    ) -> Upstream:
        """Return an upstream that asks the fleet before the registry; the arguments are those of `Upstream`."""
        return Upstream(registry, client, tokens, learned, account)

    def fill_ended(self, fill: Fill) -> None:
        """Upload what a fill has stored, and release its lease."""

    def content_changed(self, host: str, repository: str, reference: str, is_blob: bool, subject: str | None) -> None:
        """Report a push or delete through this node to all nodes; the arguments are those of `ContentChanged`."""

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
            problem=self._bucket.closed_because or self._bucket.problem,
            capacity=options.capacity,
            nodes=tuple(
                NodeStatus(each.id, each.address, each.version, is_own=each.id == me.id)
                for each in self._membership.nodes
            ),
            leases=self._leases.held,
            requests={kind: dict(outcomes) for kind, outcomes in counts.requests.items()},
            received={tier: counts.received[tier] for tier in ("bucket", "peer")},
            uploads=UploadStatus(0, uploads["stored"], uploads["refused"], uploads["failed"], counts.uploaded_bytes),
            sweep=None,
        )
