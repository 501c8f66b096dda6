"""Whole images: fetching one before anybody asks for its parts, and whether one is here completely."""

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

type Turn = Callable[[], Awaitable[None]]
"""Waits until one request more for a manifest may be made."""

logger = logging.getLogger("hubcache")

MAX_MANIFESTS = 256
"""Manifests of one image that are looked at. The largest official indexes have some 40, attestations included."""

MAX_REFERENCES = 20_000
"""What all of these together refer to."""

MAX_DEPTH = 4
"""Steps from an image's first manifest to its last: an index of images takes one, an index of indexes two."""

LONGEST_SECONDS = 3600.0
"""An image that takes longer to fetch is given up."""

_MAX_REFERRERS = 32
"""Manifests fetched of those that refer to one attestation."""

_MAX_PARSED = 100_000
_MAX_ANSWERS = 1_000
"""What is kept in memory: parsed descriptors, and images that are known to be complete or not."""

FALLBACK_ACCEPT = normalize_accept(f"{OCI_INDEX}, */*")
"""What containerd sends when it asks for the tag made from a digest."""


class Prefetch:
    """Fetches and checks images; of an index, only the platforms that are wanted, with their attestations.

    `may_spend` tells whether a host's rate limit leaves room for one more pull in the background.
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
        self._complete = LRUCache[tuple[Digest, frozenset[str]], bool](_MAX_ANSWERS)
        self._complete_at = -1

    def children(self, digest: Digest) -> tuple[Descriptor, ...] | None:
        """What a stored manifest refers to; None when it is not stored."""
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
        """The platforms of a stored index whose manifests clients have asked for."""
        return {
            child.platform
            for child in self.children(digest) or ()
            if child.is_manifest
            and child.platform is not None
            and child.attests is None
            and self._store.popularity.was_requested(child.digest)
        }

    async def fetch(self, view: RepositoryView, digest: Digest, platforms: Set[str], turn: Turn | None = None) -> None:
        """Have a manifest with all its blobs in the store, of an index those of `platforms` with their attestations,
        and what an engine asks beside it; raises `HubcacheError`.

        The image was found worth it: its parts count as asked for as often as admission wants.
        """
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._fetch(view, digest, platforms, turn)
        except TimeoutError as error:
            raise Unavailable("an image took too long to fetch") from error

    async def _fetch(self, view: RepositoryView, root: Digest, platforms: Set[str], turn: Turn | None) -> None:
        for attestation in await self._fetch_tree(view, root, platforms, turn):
            try:
                for referrer in (await self._ask_referrers(view, attestation))[:_MAX_REFERRERS]:
                    await self._fetch_tree(view, referrer, frozenset(), turn)
            except HubcacheError as error:  # no pull needs it
                logger.debug("hubcache: what refers to %s is not fetched: %s", attestation, error)

    async def _fetch_tree(
        self, view: RepositoryView, root: Digest, platforms: Set[str], turn: Turn | None
    ) -> list[Digest]:
        """Fetch a manifest and all below it that is wanted; returns which of it are attestations."""
        walk, attestations = _Walk(root), list[Digest]()
        while (step := walk.next()) is not None:
            digest, depth = step
            await self._spend(view, digest, turn)
            found = await self._manifests.by_digest(view, digest, head=False)
            children = parse_manifest(found.body or b"{}")
            walk.saw(children)
            for blob in dict.fromkeys(child.digest for child in children if not child.is_manifest):
                if view.upstream.is_rate_limited("manifest", ""):
                    raise TooManyRequests("the registry wants us to pause")
                self._store.popularity.ensure_admitted(blob)
                await self._blobs.fetch(view, blob)
            for child in select_platforms(children, platforms):
                self._store.popularity.ensure_admitted(child.digest)
                walk.add(child.digest, depth + 1)
                if child.attests is not None:
                    attestations.append(child.digest)
            await asyncio.sleep(0)
        if walk.is_cut:
            raise BadUpstream("an image refers to too much", {"digest": str(root)})
        return attestations

    async def _spend(self, view: RepositoryView, digest: Digest, turn: Turn | None) -> None:
        """Before a manifest is asked for that is not stored."""
        if self._store.has(digest):
            return
        if not self._may_spend(view.host):
            raise TooManyRequests("what is left of the rate limit is for clients")
        if turn is not None:
            await turn()

    async def _ask_referrers(self, view: RepositoryView, attestation: Digest) -> list[Digest]:
        """Ask what an engine will ask about an attestation, so that the answer is known: what refers to it, by the API
        and where that fails by the tag (seen: Docker Engine 29)."""
        try:
            body = (await self._referrers.by_subject(view, attestation, "")).body
        except ManifestUnknown:  # the usual answer
            tag = fallback_tag(attestation)
            body = (await self._referrers.by_fallback_tag(view, tag, FALLBACK_ACCEPT, head=False)).body or b"{}"
        return [child.digest for child in parse_manifest(body)]

    async def is_complete(self, digest: Digest, platforms: Set[str]) -> bool:
        """Whether a pull for any of `platforms` finds everything in the store, attestations included.

        The answer is remembered until the store holds something else.
        """
        version, key = self._store.usage.version, (digest, frozenset(platforms))
        if self._complete_at != version:
            self._complete.clear()
            self._complete_at = version
        answer = self._complete.get(key)
        if answer is None:
            answer = await self._looks_complete(digest, platforms)
            if version == self._complete_at:
                self._complete[key] = answer
        return answer

    async def _looks_complete(self, root: Digest, platforms: Set[str]) -> bool:
        walk = _Walk(root)
        while (step := walk.next()) is not None:
            digest, depth = step
            children = self.children(digest)
            if children is None or not all(child.is_manifest or self._store.has(child.digest) for child in children):
                return False
            walk.saw(children)
            found = select_platforms(children, platforms)
            if not found and any(child.is_manifest for child in children):
                return False
            for child in found:
                walk.add(child.digest, depth + 1)
            await asyncio.sleep(0)  # a manifest of 4 MiB takes some 30 ms to parse
        return not walk.is_cut


class _Walk:
    """Manifests still to be looked at, nearest first, each once, and no more and no deeper than an image is."""

    def __init__(self, root: Digest) -> None:
        self._seen = {root}
        self._pending = deque([(root, 0)])
        self._descriptors = 0
        self.is_cut = False

    def next(self) -> tuple[Digest, int] | None:
        """The next manifest and its depth; None at the end."""
        return self._pending.popleft() if self._pending else None

    def saw(self, children: tuple[Descriptor, ...]) -> None:
        """A manifest refers to these; with too many of them the walk is at its end."""
        self._descriptors += len(children)
        if self._descriptors > MAX_REFERENCES:
            self.is_cut = True
            self._pending.clear()

    def add(self, digest: Digest, depth: int) -> None:
        """Look at this one, too; beyond the bounds nothing is added, and the walk counts as cut."""
        if digest in self._seen:
            return
        if len(self._seen) >= MAX_MANIFESTS or depth > MAX_DEPTH:
            self.is_cut = True
            return
        self._seen.add(digest)
        self._pending.append((digest, depth))


def select_platforms(children: tuple[Descriptor, ...], platforms: Set[str]) -> list[Descriptor]:
    """The manifests of an index for these platforms, and those with their attestations."""
    found = [child for child in children if child.is_manifest and matches(child.platform, platforms)]
    attested = {child.digest for child in found}
    return [*found, *(child for child in children if child.attests in attested)]


def matches(platform: str | None, platforms: Set[str]) -> bool:
    """Whether a platform of an index is among those wanted; a wanted one without variant takes any variant."""
    if platform is None:
        return False
    return platform in platforms or platform[: platform.rindex("/") + 1] in platforms
