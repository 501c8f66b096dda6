"""A mirror that serves only images that are completely stored (`hubcache_mirror_miss=notfound`), as mirror.gcr.io does.

A pull of any other image gets a 404, and the client continues with its next mirror or the registry. The request is
counted: an image that is requested often enough is fetched in the background, completely, for the requested platforms,
and served from then on.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from cachetools import LRUCache

from ..decide.decaying_count import DecayingCount
from ..oci.digest import Digest
from ..oci.errors import BlobUnknown, HubcacheError, ManifestUnknown, NotStored
from ..store.store import Store
from .access import Access
from .cached_blobs import BlobResult, CachedBlobs
from .cached_manifests import CachedManifests
from .client_platform import platform_of
from .manifest_validation import ManifestValidation
from .prefetch import Prefetch
from .pull_counting import PullCounter
from .repository_view import RepositoryView
from .stored_manifests import ManifestResult

logger = logging.getLogger("hubcache")

MAX_COUNTED = 50_000
"""Images whose requests are counted at the same time."""

_CONCURRENT_FETCHES = 2
_MAX_FETCHING = 100
"""Images that are being fetched, or wait for it, at the same time; another one is fetched at its next request."""

type _Image = tuple[str, str, str]
"""Registry host, repository and reference, whatever media types and platform a client accepts."""


class StoredOnlyMirror:
    """Serves complete images and fetches popular ones.

    `admit_after` is a number of requests, `half_life` is in seconds; `may_spend` is that of `TagRefresh`.
    """

    def __init__(
        self,
        store: Store,
        access: Access,
        manifests: CachedManifests,
        validation: ManifestValidation,
        blobs: CachedBlobs,
        prefetch: Prefetch,
        may_spend: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.admit_after = 2
        self.half_life = 7 * 86400.0
        self._store = store
        self._access = access
        self._manifests = manifests
        self._validation = validation
        self._blobs = blobs
        self._prefetch = prefetch
        self._may_spend = may_spend
        self._clock = clock
        self._requests: LRUCache[_Image, tuple[DecayingCount, frozenset[str]]] = LRUCache(MAX_COUNTED)
        """How often each image was requested, and for which platforms."""
        self._pulls = PullCounter()
        self._fetching: dict[tuple[str, str, str, str], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_CONCURRENT_FETCHES)

    async def manifest(
        self, view: RepositoryView, reference: str | Digest, negotiation: str, client: tuple[str, str], *, head: bool
    ) -> ManifestResult:
        """Return a manifest of a complete image; raises `ManifestUnknown` for any other.

        `client` is an address and a `User-Agent`.
        """
        wanted = platform_of(client[1])
        image = (view.host, view.repository, str(reference))
        if isinstance(reference, Digest):
            if await self._may_serve(view, reference, {wanted}):
                return await self._manifests.by_digest(view, reference, head=head)
        elif await self._is_current(view, reference, negotiation, wanted):
            return await self._manifests.by_tag(view, reference, negotiation, head=head)
        if self._pulls.is_new_pull(image, client):
            self._count(view, image, reference, negotiation, wanted)
        raise ManifestUnknown("this mirror does not have that image", {"repository": view.repository})

    async def blob(self, view: RepositoryView, digest: Digest, range_header: str | None, *, head: bool) -> BlobResult:
        """Return a stored blob; raises `BlobUnknown` for any other."""
        if not self._store.has(digest) or not self._permits(view, digest):
            raise BlobUnknown("this mirror does not have that blob", {"digest": str(digest)})
        return await (self._blobs.head(view, digest) if head else self._blobs.get(view, digest, range_header))

    def _permits(self, view: RepositoryView, digest: Digest) -> bool:
        return self._access.permits(view.host, view.repository, digest, None, outage=True)

    async def _may_serve(self, view: RepositoryView, digest: Digest, platforms: set[str]) -> bool:
        return self._permits(view, digest) and await self._prefetch.is_complete(digest, platforms)

    async def _is_current(self, view: RepositoryView, tag: str, negotiation: str, wanted: str) -> bool:
        """Whether the image that a tag refers to is complete. After the tag moved, the new image is fetched first."""
        record = self._store.tags.get(view.host, view.repository, tag).get(negotiation)
        if record is None or not await self._may_serve(view, record.digest, {wanted}):
            return False
        found = await self._manifests.by_tag(view, tag, negotiation, head=True)
        if found.digest == record.digest or await self._may_serve(view, found.digest, {wanted}):
            return True
        self._start_fetch(view, (view.host, view.repository, tag), tag, negotiation, frozenset({wanted}))
        return False

    def _count(
        self, view: RepositoryView, image: _Image, reference: str | Digest, negotiation: str, wanted: str
    ) -> None:
        now = self._clock()
        count, platforms = self._requests.get(image, (DecayingCount(0.0, now), frozenset()))
        count, platforms = count.plus(now, self.half_life), platforms | {wanted}
        self._requests[image] = count, platforms
        if count.count > self.admit_after - 1:
            self._start_fetch(view, image, reference, negotiation, platforms)

    def _start_fetch(
        self,
        view: RepositoryView,
        image: _Image,
        reference: str | Digest,
        negotiation: str,
        platforms: frozenset[str],
    ) -> None:
        key = (*image, negotiation)
        if (
            key in self._fetching
            or len(self._fetching) >= _MAX_FETCHING
            or not view.upstream.is_reachable
            or not self._may_spend(view.host)
        ):
            return
        task = asyncio.create_task(self._fetch(view, reference, negotiation, platforms))
        self._fetching[key] = task
        task.add_done_callback(lambda _: self._fetching.pop(key, None))

    async def _fetch(
        self, view: RepositoryView, reference: str | Digest, negotiation: str, platforms: frozenset[str]
    ) -> None:
        try:
            async with self._slots:
                digest = reference
                if not isinstance(digest, Digest):
                    digest = (await self._validation.validate(view, digest, negotiation, head=False)).digest
                await self._prefetch.fetch(view, digest, platforms)
        except NotStored as error:
            logger.info("hubcache: %s:%s not mirrored: %s", view.repository, reference, error)
        except HubcacheError as error:
            logger.warning("hubcache: %s:%s cannot be mirrored: %s", view.repository, reference, error)

    async def close(self) -> None:
        """Cancel the fetches that are running."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
