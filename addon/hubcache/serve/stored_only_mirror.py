"""A mirror that offers only what it has (`hubcache_mirror_miss=notfound`), as mirror.gcr.io does.

A pull of an image that is not stored whole gets a clean 404, and the client goes on to its next mirror or to the Hub.
The request is counted; an image that is asked for often enough is fetched in the background, whole, for the platforms
that were asked for, and offered from then on.
"""

import asyncio
import logging
import platform as machine
import re
import time
from collections.abc import Callable

from cachetools import LRUCache

from ..decide.decaying_count import DecayingCount
from ..oci.digest import Digest
from ..oci.errors import BlobUnknown, HubcacheError, ManifestUnknown, NotStored
from ..store.store import Store
from .access import Access
from .cached_blobs import BlobResult, CachedBlobs
from .cached_manifests import CachedManifests, ManifestResult
from .prefetch import Prefetch
from .pull_counting import PullCounter
from .repository_view import RepositoryView

logger = logging.getLogger("hubcache")

MAX_COUNTED = 50_000
"""Images whose requests are counted at the same time."""

_AT_ONCE = 2
_MAX_FETCHING = 100
"""Images that are fetched, or wait for it, at the same time; the next is when it is asked for again."""
_PLATFORM = re.compile(r"os/(\w{1,20}) arch/(\w{1,20})")
_SYSTEMS = {"linux", "windows", "darwin", "freebsd"}
_KNOWN_ARCHITECTURES = {
    *("386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64"),
    *("s390x", "wasm"),
}
"""As Go names them (OCI image index, "platform"), of those for which there are images."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}

type _Image = tuple[str, str, str]
"""Registry host, repository and reference: whatever is accepted, and whatever for, it is a request for the image."""


class StoredOnlyMirror:
    """`admit_after` in requests, `half_life` in seconds; `may_spend` as for `TagRefresh`."""

    def __init__(
        self,
        store: Store,
        access: Access,
        manifests: CachedManifests,
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
        self._blobs = blobs
        self._prefetch = prefetch
        self._may_spend = may_spend
        self._clock = clock
        self._asked: LRUCache[_Image, tuple[DecayingCount, frozenset[str]]] = LRUCache(MAX_COUNTED)
        """How often, and for which platforms."""
        self._pulls = PullCounter()
        self._fetching: dict[tuple[str, str, str, str], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def manifest(
        self, view: RepositoryView, reference: str | Digest, negotiation: str, client: tuple[str, str], *, head: bool
    ) -> ManifestResult:
        """A manifest of an image that is here whole; raises `ManifestUnknown` for any other.

        `client` is an address and a `User-Agent`.
        """
        wanted = platform_of(client[1])
        image = (view.host, view.repository, str(reference))
        if isinstance(reference, Digest):
            if await self._may_offer(view, reference, {wanted}):
                return await self._manifests.by_digest(view, reference, head=head)
        elif await self._is_current(view, reference, negotiation, wanted):
            return await self._manifests.by_tag(view, reference, negotiation, head=head)
        if self._pulls.is_new_pull(image, client):
            self._count(view, image, reference, negotiation, wanted)
        raise ManifestUnknown("this mirror does not have that image", {"repository": view.repository})

    async def blob(self, view: RepositoryView, digest: Digest, range_header: str | None, *, head: bool) -> BlobResult:
        """A blob that is here; raises `BlobUnknown` for any other."""
        if not self._store.has(digest) or not self._permits(view, digest):
            raise BlobUnknown("this mirror does not have that blob", {"digest": str(digest)})
        return await (self._blobs.head(view, digest) if head else self._blobs.get(view, digest, range_header))

    def _permits(self, view: RepositoryView, digest: Digest) -> bool:
        return self._access.permits(view.host, view.repository, digest, None, outage=True)

    async def _may_offer(self, view: RepositoryView, digest: Digest, platforms: set[str]) -> bool:
        return self._permits(view, digest) and await self._prefetch.is_complete(digest, platforms)

    async def _is_current(self, view: RepositoryView, tag: str, negotiation: str, wanted: str) -> bool:
        """Whether what the tag is now, is here whole. Something that moved is fetched first and offered then."""
        record = self._store.tags.get(view.host, view.repository, tag).get(negotiation)
        if record is None or not await self._may_offer(view, record.digest, {wanted}):
            return False
        found = await self._manifests.by_tag(view, tag, negotiation, head=True)
        if found.digest == record.digest or await self._may_offer(view, found.digest, {wanted}):
            return True
        self._fetch(view, (view.host, view.repository, tag), tag, negotiation, frozenset({wanted}))
        return False

    def _count(
        self, view: RepositoryView, image: _Image, reference: str | Digest, negotiation: str, wanted: str
    ) -> None:
        now = self._clock()
        tally, platforms = self._asked.get(image, (DecayingCount(0.0, now), frozenset()))
        tally, platforms = tally.plus(now, self.half_life), platforms | {wanted}
        self._asked[image] = tally, platforms
        if tally.count > self.admit_after - 1:
            self._fetch(view, image, reference, negotiation, platforms)

    def _fetch(
        self, view: RepositoryView, image: _Image, reference: str | Digest, negotiation: str, platforms: frozenset[str]
    ) -> None:
        key = (*image, negotiation)
        if (
            key in self._fetching
            or len(self._fetching) >= _MAX_FETCHING
            or not view.upstream.is_reachable
            or not self._may_spend(view.host)
        ):
            return
        task = asyncio.create_task(self._fetch_whole(view, reference, negotiation, platforms))
        self._fetching[key] = task
        task.add_done_callback(lambda _: self._fetching.pop(key, None))

    async def _fetch_whole(
        self, view: RepositoryView, reference: str | Digest, negotiation: str, platforms: frozenset[str]
    ) -> None:
        try:
            async with self._slots:
                digest = reference
                if not isinstance(digest, Digest):
                    digest = (await self._manifests.validate(view, str(reference), negotiation, head=False)).digest
                await self._prefetch.fetch(view, digest, platforms)
        except NotStored as error:
            logger.info("hubcache: %s:%s not mirrored: %s", view.repository, reference, error)
        except HubcacheError as error:
            logger.warning("hubcache: %s:%s cannot be mirrored: %s", view.repository, reference, error)

    async def close(self) -> None:
        """End what runs."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def platform_of(user_agent: str) -> str:
    """The platform of a client as far as its `User-Agent` tells (dockerd: `… os/linux arch/arm64 …`), else our own.
    Only those that exist: each is fetched and kept in mind."""
    found = _PLATFORM.search(user_agent)
    if found is not None and found[1] in _SYSTEMS and found[2] in _KNOWN_ARCHITECTURES:
        return f"{found[1]}/{found[2]}/"
    return f"linux/{_ARCHITECTURES.get(machine.machine(), machine.machine())}/"
