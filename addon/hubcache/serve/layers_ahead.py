"""Begins the next layer of an image while a client still receives the one before.

Clients request layers in the order of the manifest: dockerd and containerd three at a time, others (skopeo to a
directory, kaniko) one at a time, so that the upstream is idle while such a client unpacks or verifies. A client that
has some layers already has the first ones, and does not request them: so nothing is begun before the first request of
a layer, and only layers after it.

A layer is begun only when no other layer of the image is being downloaded, because they would share the uplink: the
layer that the client needs now would arrive later. skopeo, which copies one layer at a time, took 3.2 s for a new image
over 1 Gbit/s without a cache, 3.4 s with no layer begun ahead, 3.6 s with one beside the requested one, and 4.1 s with
five. So for a client of one layer at a time, the next one is begun when all bytes of the requested one have arrived,
for dockerd and containerd when none of their three is downloaded any more.

Once the client receives no layer any more, what was begun continues only as other fills without readers do, and nothing
is begun: else a client could cause many downloads by requesting layers and disconnecting.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from cachetools import LRUCache

from ..oci.digest import Digest
from ..oci.errors import HubcacheError
from ..oci.manifest import Descriptor
from ..store.store import Store
from ..transfer.fill import Fill
from ..transfer.sources import FileSource, FillSource, Source, UpstreamSource
from .cached_blobs import CachedBlobs
from .repository_view import RepositoryView

logger = logging.getLogger("hubcache")

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
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def manifest_sent(self, client: str, host: str, repository: str, digest: Digest) -> None:
        """Remember that a client received a manifest of a repository that is public."""
        manifests = self._manifests.setdefault((client, host, repository), deque(maxlen=_MANIFESTS))
        if digest not in manifests:
            manifests.append(digest)

    def blob_requested(self, view: RepositoryView, digest: Digest, source: Source | None) -> None:
        """Begin the layers that follow a blob of which the client receives all bytes from `source`: the first of them
        now, if no layer of the image is being downloaded, else later."""
        if view.authorization is not None or not isinstance(source, FileSource | FillSource | UpstreamSource):
            return
        manifests = self._manifests.get(_key(view), ())
        for manifest in reversed(manifests):
            layers = [child.digest for child in self._children(manifest) or () if not child.is_manifest][1:]
            if digest in layers:
                receiving = self._receiving.setdefault(_key(view), _Receiving(view))
                receiving.view, receiving.layers = view, layers
                receiving.following = layers[layers.index(digest) + 1 :]
                self._count_body(receiving, source)
                self._continue(receiving)
                return

    def _count_body(self, receiving: "_Receiving", source: FileSource | FillSource | UpstreamSource) -> None:
        """Count one more layer that the client receives until `source` is closed."""
        is_streamed = isinstance(source, UpstreamSource)
        receiving.bodies += 1
        receiving.streams += is_streamed
        closed = source.on_close

        def end() -> None:
            closed()
            source.on_close = closed
            receiving.bodies -= 1
            receiving.streams -= is_streamed
            if receiving.bodies:
                self._continue(receiving)
            else:
                self._end(receiving, source)

        source.on_close = end

    def was_fetched_for(self, view: RepositoryView, digest: Digest) -> bool:
        """Whether a blob that a client requests now, for the first time, was fetched ahead for it: its pull is then not
        one from the store."""
        key = (view.client, view.host, digest)
        is_own = view.authorization is None and key in self._fetched
        if is_own:
            del self._fetched[key]
        return is_own

    def _continue(self, receiving: "_Receiving") -> None:
        """Begin the next layer as soon as no other one is downloaded, and then those after it."""
        is_idle = receiving.task is None or receiving.task.done()
        if is_idle and self._next(receiving) is not None:
            receiving.task = self._start(self._fetch_following(receiving))

    def _end(self, receiving: "_Receiving", source: Source) -> None:
        """Begin nothing more for a client whose last body, from `source`, has ended.

        If it received the end of a fill, the next layer is begun here: the task that waits for the end of the fill may
        not have run yet.
        """
        is_complete = isinstance(source, FillSource) and source.fill.verified
        if is_complete and self._downloading(receiving) is None and (layer := self._next(receiving)) is not None:
            self._start(self._fetch(layer, receiving))
        receiving.has_ended.set()
        del self._receiving[_key(receiving.view)]

    def _start[Value](self, work: Coroutine[Any, Any, Value]) -> asyncio.Task[Value]:
        """Run until the first wait now, so that a fill that is begun is a running one immediately."""
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _fetch_following(self, receiving: "_Receiving") -> None:
        """Fetch one layer after another while no other one is downloaded, until one fails, or the client receives none
        any more."""
        while not (receiving.has_ended.is_set() or receiving.streams):
            layer = self._next(receiving)
            if layer is None:
                return
            downloading = self._downloading(receiving)
            if downloading is not None and downloading.digest != layer:
                await downloading.wait_received(receiving.has_ended)
                if not downloading.verified:  # the client may have to request that layer again
                    return
            elif not await self._fetch(layer, receiving):
                return

    def _next(self, receiving: "_Receiving") -> Digest | None:
        """Return the first following layer that is not stored, and was not begun before."""
        following = [] if self._is_closed else receiving.following
        return next((layer for layer in following if layer not in receiving.begun and not self._store.has(layer)), None)

    def _downloading(self, receiving: "_Receiving") -> Fill | None:
        """Return a fill of a layer of the image that still receives bytes, for this client or another one."""
        fills = map(self._blobs.fill_of, receiving.layers)
        return next((fill for fill in fills if fill is not None and not fill.verified), None)

    async def _fetch(self, layer: Digest, receiving: "_Receiving") -> bool:
        """Fetch a layer; returns whether that has not failed."""
        view = receiving.view
        key = (view.client, view.host, layer)
        receiving.begun.add(layer)
        if self._blobs.fill_of(layer) is None:
            self._fetched[key] = None
        try:
            await self._blobs.fetch_ahead(view, layer, receiving.has_ended)
        except HubcacheError as error:  # the client will request the layer, and receive the error then
            logger.debug("hubcache: %s is not fetched ahead: %s", layer, error)
            self._fetched.pop(key, None)
            return False
        return True

    async def close(self) -> None:
        """Stop fetching ahead."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Receiving:
    """The layers of a repository that a client receives at the same time, and those that follow the last of them."""

    def __init__(self, view: RepositoryView) -> None:
        self.view = view
        """The view of the last request."""
        self.layers: list[Digest] = []
        """The layers of the image."""
        self.following: list[Digest] = []
        """Those after the one that was requested last."""
        self.bodies = 0
        """Number of bodies."""
        self.streams = 0
        """Number of them that are downloaded from the upstream without a fill."""
        self.has_ended = asyncio.Event()
        """Set when there are no bodies any more."""
        self.begun: set[Digest] = set()
        """The layers that were begun meanwhile."""
        self.task: asyncio.Task[None] | None = None
        """Fetches the following layers."""


def _key(view: RepositoryView) -> _Key:
    return view.client, view.host, view.repository
