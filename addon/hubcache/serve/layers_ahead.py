"""Begins the next layer of an image while a client still receives the one before.

Clients request layers in the order of the manifest: dockerd and containerd three at a time, others (skopeo to a
directory, kaniko) one at a time, so that the upstream is idle while such a client unpacks or verifies. A client that
has some layers already has the first ones, and does not request them: so nothing is begun before the first request of
a layer, and only layers after it. Once the client receives no layer any more, they continue only as other fills without
readers do: else a client could cause many downloads by requesting layers and disconnecting.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Self

from cachetools import LRUCache

from ..oci.digest import Digest
from ..oci.errors import HubcacheError
from ..oci.manifest import Descriptor
from ..store.store import Store
from ..transfer.sources import FileSource, FillSource, Source, UpstreamSource
from .cached_blobs import CachedBlobs
from .repository_view import RepositoryView

logger = logging.getLogger("hubcache")

MOST_BESIDE = 1
"""Layers of an image that are fetched beside one that the client requests. They share the uplink with it, while the
client unpacks: skopeo, which copies one layer at a time, took 3.2 s for a new image over 1 Gbit/s without a cache, 3.4
s with none of them, 3.6 s with one, and 4.1 s with five."""

type _Key = tuple[str, str, str]
"""A client, a registry and a repository."""

_MAX_CLIENTS = 1_000
_MAX_FETCHED = 10_000
_MANIFESTS = 4
"""Manifests that are remembered of one client and repository: an index, an image, its attestations."""


class LayersAhead:
    """Fetches layers for clients of public images, from their request of another layer on.

    `children` returns the descriptors in a stored manifest, None when it is not stored.
    """

    def __init__(
        self, store: Store, blobs: CachedBlobs, children: Callable[[Digest], tuple[Descriptor, ...] | None]
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._children = children
        self._manifests = LRUCache[_Key, deque[Digest]](_MAX_CLIENTS)
        """The last manifests."""
        self._receiving: dict[_Key, _Receiving] = {}
        """The layers that clients receive now."""
        self._fetched = LRUCache[tuple[str, str, Digest], None](_MAX_FETCHED)
        """Layers that were fetched for a client, by client and registry, until it requests them."""
        self._tasks: set[asyncio.Task[None]] = set()

    def manifest_sent(self, client: str, host: str, repository: str, digest: Digest) -> None:
        """Remember that a client received a manifest of a repository that is public."""
        manifests = self._manifests.setdefault((client, host, repository), deque(maxlen=_MANIFESTS))
        if digest not in manifests:
            manifests.append(digest)

    def blob_requested(self, view: RepositoryView, digest: Digest, source: Source | None) -> None:
        """Begin the layers that follow a blob of which the client receives all bytes from `source`."""
        if view.authorization is not None:
            return
        manifests = self._manifests.get(_key(view), ())
        for manifest in reversed(manifests):
            layers = [child.digest for child in self._children(manifest) or () if not child.is_manifest][1:]
            if digest in layers:
                self._begin(view, layers, layers.index(digest) + 1, self._count_body(view, source))
                return

    def _count_body(self, view: RepositoryView, source: Source | None) -> "_Receiving":
        """Count one more layer that the client receives until `source` is closed."""
        if not isinstance(source, FileSource | FillSource | UpstreamSource):
            return self._receiving.get(_key(view), _Receiving.ended())
        receiving = self._receiving.setdefault(_key(view), _Receiving())
        receiving.bodies += 1
        closed = source.on_close

        def end() -> None:
            closed()
            source.on_close = closed
            receiving.bodies -= 1
            if not receiving.bodies:
                receiving.has_ended.set()
                del self._receiving[_key(view)]

        source.on_close = end
        return receiving

    def was_fetched_for(self, view: RepositoryView, digest: Digest) -> bool:
        """Whether a blob that a client requests now, for the first time, was fetched ahead for it: its pull is then not
        one from the store."""
        key = (view.client, view.host, digest)
        is_own = view.authorization is None and key in self._fetched
        if is_own:
            del self._fetched[key]
        return is_own

    def _begin(self, view: RepositoryView, layers: list[Digest], after: int, receiving: "_Receiving") -> None:
        running = sum(self._blobs.is_running(layer) for layer in {*layers} - {layers[after - 1]})
        for layer in dict.fromkeys(layers[after:]):
            is_running = self._blobs.is_running(layer)
            if layer in receiving.ahead or self._store.has(layer) or (not is_running and running >= MOST_BESIDE):
                continue
            if not is_running:
                running += 1
                self._fetched[view.client, view.host, layer] = None
            receiving.ahead.add(layer)
            task = asyncio.create_task(self._fetch(view, layer, receiving))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fetch(self, view: RepositoryView, layer: Digest, receiving: "_Receiving") -> None:
        try:
            await self._blobs.fetch_ahead(view, layer, receiving.has_ended)
        except HubcacheError as error:  # the client will request the layer, and receive the error then
            logger.debug("hubcache: %s is not fetched ahead: %s", layer, error)
        finally:
            receiving.ahead.discard(layer)

    async def close(self) -> None:
        """Stop fetching ahead."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Receiving:
    """The layers of a repository that a client receives at the same time."""

    def __init__(self) -> None:
        self.bodies = 0
        """Number of bodies."""
        self.has_ended = asyncio.Event()
        """Set when there are none any more."""
        self.ahead: set[Digest] = set()
        """The layers that are fetched meanwhile."""

    @classmethod
    def ended(cls) -> Self:
        """Return one for a client that receives nothing."""
        receiving = cls()
        receiving.has_ended.set()
        return receiving


def _key(view: RepositoryView) -> _Key:
    return view.client, view.host, view.repository
