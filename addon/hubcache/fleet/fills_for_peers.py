"""Begins fills of blobs that other nodes request from this one, because it has fetched the manifest."""

from ..oci.digest import Digest
from ..store.store import Store
from ..transfer.fill_slots import PREFETCH
from ..transfer.fills import Fills
from .local_cache import BeginFill
from .read_permission import Permits
from .shared_fill import SharedFill


class FillsForPeers:
    """The fills that this node begins for others."""

    def __init__(
        self,
        store: Store,
        fills: Fills,
        shared: dict[Digest, SharedFill],
        permits: Permits,
        begin_fill: BeginFill,
    ) -> None:
        """`shared` has the fills of the fleet that run, see `SharedBlobs`; those that begin here are added."""
        self._store = store
        self._fills = fills
        self._shared = shared
        self._permits = permits
        self._begin_fill = begin_fill
        self.is_stopping = False
        """Whether this node stops, and begins no fills for others."""

    def is_asking_leader(self, digest: Digest) -> bool:
        """Whether a fill waits for the answer of the node that has fetched its blob's manifest."""
        fill = self._shared.get(digest)
        return fill is not None and fill.is_asking_leader

    async def begin(self, host: str, repository: str, digest: Digest) -> None:
        """Begin a fill for another node, as for a client of this one.

        Begins none if a fill of the blob runs, the blob is not known to be public, the fill would wait for others, or
        this node is stopping. The fill asks no leader: two nodes that take each other for it would wait for each other.
        Raises `HubcacheError`.
        """
        is_running = digest in self._shared or self._fills.get(digest) is not None
        if self.is_stopping or is_running or not self._fills.has_free_slot(PREFETCH):
            return
        if self._store.private.has(digest) or not self._permits(host, repository, digest, False):
            return
        fill = self._shared[digest] = SharedFill((host, repository, True, None), asks_leader=False)
        try:
            await self._begin_fill(host, repository, digest)
        finally:
            if self._fills.get(digest) is None and self._shared.get(digest) is fill:
                del self._shared[digest]
