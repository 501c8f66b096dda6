"""Begins the next layers of an image while a client still receives the ones before.

Clients request layers in the order of the manifest: dockerd and containerd three at a time, others (skopeo to a
directory, kaniko) one at a time, so that the upstream is idle while such a client unpacks or verifies. A client that
has some layers already has the first ones, and does not request them: so nothing is begun before the first request of
a layer, and only layers after it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from cachetools import LRUCache

from ..oci.digest import Digest
from ..oci.errors import HubcacheError
from ..oci.manifest import Descriptor
from ..store.store import Store
from .cached_blobs import CachedBlobs
from .repository_view import RepositoryView

logger = logging.getLogger("hubcache")

MOST_BESIDE = 5
"""Layers of an image that are fetched beside one that the client requests: with it they are six, as many as podman and
skopeo request at once. dockerd and containerd request three, and wait longer where a CDN limits each connection. More
than six would share the uplink with the layer that the client unpacks first."""

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
        self._manifests = LRUCache[tuple[str, str, str], deque[Digest]](_MAX_CLIENTS)
        """The last manifests, by client, registry and repository."""
        self._fetched = LRUCache[tuple[str, str, Digest], None](_MAX_FETCHED)
        """Layers that were fetched for a client, by client and registry, until it requests them."""
        self._tasks: set[asyncio.Task[None]] = set()

    def manifest_sent(self, client: str, host: str, repository: str, digest: Digest) -> None:
        """Remember that a client received a manifest of a repository that is public."""
        manifests = self._manifests.setdefault((client, host, repository), deque(maxlen=_MANIFESTS))
        if digest not in manifests:
            manifests.append(digest)

    def blob_requested(self, view: RepositoryView, digest: Digest) -> None:
        """Begin the layers that follow a blob of which the client has requested all bytes."""
        if view.authorization is not None:
            return
        manifests = self._manifests.get((view.client, view.host, view.repository), ())
        for manifest in reversed(manifests):
            layers = [child.digest for child in self._children(manifest) or () if not child.is_manifest][1:]
            if digest in layers:
                self._begin(view, layers, layers.index(digest) + 1)
                return

    def was_fetched_for(self, view: RepositoryView, digest: Digest) -> bool:
        """Whether a blob that a client requests now, for the first time, was fetched ahead for it: its pull is then not
        one from the store."""
        key = (view.client, view.host, digest)
        is_own = view.authorization is None and key in self._fetched
        if is_own:
            del self._fetched[key]
        return is_own

    def _begin(self, view: RepositoryView, layers: list[Digest], after: int) -> None:
        running = sum(self._blobs.is_running(layer) for layer in {*layers} - {layers[after - 1]})
        for layer in dict.fromkeys(layers[after:]):
            if running >= MOST_BESIDE:
                return
            if not self._store.has(layer) and not self._blobs.is_running(layer):
                running += 1
                self._fetched[view.client, view.host, layer] = None
                task = asyncio.create_task(self._fetch(view, layer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _fetch(self, view: RepositoryView, layer: Digest) -> None:
        try:
            await self._blobs.fetch(view, layer)
        except HubcacheError as error:  # the client will request the layer, and receive the error then
            logger.debug("hubcache: %s is not fetched ahead: %s", layer, error)

    async def close(self) -> None:
        """Stop fetching ahead."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
