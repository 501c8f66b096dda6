"""Fetches whole images before clients request them, and checks whether an image is completely stored."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Set

from cachetools import LRUCache

from ..oci.digest import Digest
from ..oci.errors import BadUpstream, HubcacheError, ManifestInvalid, ManifestUnknown, TooManyRequests, Unavailable
from ..oci.manifest import Descriptor, parse_manifest
from ..oci.media import OCI_INDEX, normalize_accept
from ..oci.reference import fallback_tag
from ..store.store import Store
from .cached_blobs import CachedBlobs
from .cached_manifests import CachedManifests
from .cached_referrers import CachedReferrers
from .repository_view import RepositoryView

type WaitForBudget = Callable[[], Awaitable[None]]
"""Waits until one more request for a manifest may be made."""

logger = logging.getLogger("hubcache")

MAX_MANIFESTS = 256
"""Manifests of one image that are read. The largest official indexes have some 40, attestations included."""

MAX_REFERENCES = 20_000
"""Descriptors in all of these together."""

MAX_DEPTH = 4
"""Steps from an image's first manifest to its last: an image index takes one, an index of indexes two."""

LONGEST_SECONDS = 3600.0
"""The fetch of an image ends after this time."""

_MAX_REFERRERS = 32
"""Referrers of one attestation that are fetched."""

_MAX_PARSED = 100_000
_MAX_RESULTS = 1_000
"""What is kept in memory: parsed descriptors, and whether images are complete."""

FALLBACK_ACCEPT = normalize_accept(f"{OCI_INDEX}, */*")
"""The `Accept` of containerd in a request for a tag made from a digest."""


class Prefetch:
    """Fetches and checks images; of an index only the wanted platforms, with their attestations.

    `may_spend` returns whether a host's rate limit leaves one more pull for background work.
    """

    def __init__(
        self,
        store: Store,
        manifests: CachedManifests,
        blobs: CachedBlobs,
        referrers: CachedReferrers,
        may_spend: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._manifests = manifests
        self._blobs = blobs
        self._referrers = referrers
        self._may_spend = may_spend
        self._parsed = LRUCache[Digest, tuple[Descriptor, ...]](_MAX_PARSED, getsizeof=lambda known: len(known) + 1)
        self._complete = LRUCache[tuple[Digest, frozenset[str]], bool](_MAX_RESULTS)
        self._complete_version = -1
        """The version of the store for which `_complete` holds."""

    def children(self, digest: Digest) -> tuple[Descriptor, ...] | None:
        """Return the descriptors in a stored manifest; None when it is not stored."""
        if not self._store.is_manifest(digest):
            return None
        known = self._parsed.get(digest)
        if known is None:
            record = self._store.manifest(digest)
            try:
                known = None if record is None else parse_manifest(record.body)
            except ManifestInvalid:
                known = None
            if known is not None:
                self._parsed[digest] = known
        return known

    def pulled_platforms(self, digest: Digest) -> set[str]:
        """Return the platforms of a stored image index whose manifests clients have requested."""
        return {
            child.platform
            for child in self.children(digest) or ()
            if child.is_manifest
            and child.platform is not None
            and child.attests is None
            and self._store.popularity.was_requested(child.digest)
        }

    async def fetch(
        self, view: RepositoryView, digest: Digest, platforms: Set[str], wait: WaitForBudget | None = None
    ) -> None:
        """Store a manifest with all its blobs, and what clients request beside it; raises `HubcacheError`.

        Of an index, the manifests for `platforms` with their attestations. The image was found to be popular: its parts
        are admitted as if they had been requested often enough.
        """
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._fetch(view, digest, platforms, wait)
        except TimeoutError as error:
            raise Unavailable("an image took too long to fetch") from error

    async def _fetch(self, view: RepositoryView, root: Digest, platforms: Set[str], wait: WaitForBudget | None) -> None:
        for attestation in await self._fetch_tree(view, root, platforms, wait):
            try:
                for referrer in (await self.referrers_of(view, attestation))[:_MAX_REFERRERS]:
                    await self._fetch_tree(view, referrer, frozenset(), wait)
            except HubcacheError as error:  # pulls succeed without referrers
                logger.debug("hubcache: referrers of %s are not fetched: %s", attestation, error)

    async def _fetch_tree(
        self, view: RepositoryView, root: Digest, platforms: Set[str], wait: WaitForBudget | None
    ) -> list[Digest]:
        """Fetch a manifest and all wanted content below it; return which of the manifests are attestations."""
        walk, attestations = Walk(root), list[Digest]()
        while (step := walk.next()) is not None:
            digest, depth = step
            await self._check_budget(view, digest, wait)
            found = await self._manifests.by_digest(view, digest, head=False)
            children = parse_manifest(found.body or b"{}")
            walk.count(children)
            for blob in dict.fromkeys(child.digest for child in children if not child.is_manifest):
                if view.upstream.is_rate_limited("manifest", ""):
                    raise TooManyRequests("the registry has asked for a pause")
                self._store.popularity.ensure_admitted(blob)
                await self._blobs.fetch(view, blob)
            for child in select_platforms(children, platforms):
                self._store.popularity.ensure_admitted(child.digest)
                walk.add(child.digest, depth + 1)
                if child.attests is not None:
                    attestations.append(child.digest)
            await asyncio.sleep(0)
        if walk.is_cut:
            raise BadUpstream("an image refers to too many manifests or blobs", {"digest": str(root)})
        return attestations

    async def _check_budget(self, view: RepositoryView, digest: Digest, wait: WaitForBudget | None) -> None:
        """Wait until a manifest that is not stored may be requested; raises `TooManyRequests`."""
        if self._store.has(digest):
            return
        if not self._may_spend(view.host):
            raise TooManyRequests("the rest of the rate limit is reserved for clients")
        if wait is not None:
            await wait()

    async def referrers_of(self, view: RepositoryView, subject: Digest) -> list[Digest]:
        """Return the referrers of a manifest. This stores the answer that Docker Engine 29 will request about an
        attestation.

        It requests them by the API and, where that answers 404, by the fallback tag.
        """
        try:
            body = (await self._referrers.by_subject(view, subject, "")).body
        except ManifestUnknown:  # the usual answer
            tag = fallback_tag(subject)
            body = (await self._referrers.by_fallback_tag(view, tag, FALLBACK_ACCEPT, head=False)).body or b"{}"
        return [child.digest for child in parse_manifest(body)]

    async def is_complete(self, digest: Digest, platforms: Set[str]) -> bool:
        """Whether all content of a pull for any of `platforms` is stored, attestations included.

        The result is remembered until the stored content changes.
        """
        version, key = self._store.usage.version, (digest, frozenset(platforms))
        if self._complete_version != version:
            self._complete.clear()
            self._complete_version = version
        complete = self._complete.get(key)
        if complete is None:
            complete = await self._check_complete(digest, platforms)
            if version == self._complete_version:
                self._complete[key] = complete
        return complete

    async def _check_complete(self, root: Digest, platforms: Set[str]) -> bool:
        walk = Walk(root)
        while (step := walk.next()) is not None:
            digest, depth = step
            children = self.children(digest)
            if children is None or not all(child.is_manifest or self._store.has(child.digest) for child in children):
                return False
            walk.count(children)
            found = select_platforms(children, platforms)
            if not found and any(child.is_manifest for child in children):
                return False
            for child in found:
                walk.add(child.digest, depth + 1)
            await asyncio.sleep(0)  # lets other tasks run: parsing a manifest of 4 MiB takes some 30 ms
        return not walk.is_cut


class Walk:
    """A breadth-first walk over the manifests of an image, each once, within `MAX_MANIFESTS` and `MAX_DEPTH`."""

    def __init__(self, root: Digest) -> None:
        self._seen = {root}
        self._pending = deque([(root, 0)])
        self._descriptors = 0
        self.is_cut = False
        """Whether the image exceeds the bounds, so that the walk does not cover it."""

    def next(self) -> tuple[Digest, int] | None:
        """Return the next manifest and its depth; None at the end."""
        return self._pending.popleft() if self._pending else None

    def count(self, children: tuple[Descriptor, ...]) -> None:
        """Count the descriptors of a manifest; beyond `MAX_REFERENCES` the walk ends."""
        self._descriptors += len(children)
        if self._descriptors > MAX_REFERENCES:
            self.is_cut = True
            self._pending.clear()

    def add(self, digest: Digest, depth: int) -> None:
        """Add a manifest to the walk, unless that exceeds the bounds."""
        if digest in self._seen:
            return
        if len(self._seen) >= MAX_MANIFESTS or depth > MAX_DEPTH:
            self.is_cut = True
            return
        self._seen.add(digest)
        self._pending.append((digest, depth))


def select_platforms(children: tuple[Descriptor, ...], platforms: Set[str] | None) -> list[Descriptor]:
    """Return the manifests of an index for these platforms, and those of their attestations; all for None."""
    if platforms is None:
        return [child for child in children if child.is_manifest]
    found = [child for child in children if child.is_manifest and platform_matches(child.platform, platforms)]
    attested = {child.digest for child in found}
    return [*found, *(child for child in children if child.attests in attested)]


def platform_matches(platform: str | None, platforms: Set[str]) -> bool:
    """Whether a platform of an index is among the wanted ones; a wanted one without variant matches any variant."""
    if platform is None:
        return False
    return platform in platforms or platform[: platform.rindex("/") + 1] in platforms
