"""Whole images: fetching one before anybody asks for its parts, and whether one is here completely."""

from collections.abc import Awaitable, Callable, Set

from ..oci.digest import Digest
from ..oci.errors import ManifestInvalid, TooManyRequests
from ..oci.manifest import Descriptor, parse_manifest
from ..store.store import Store
from .blobs import Blobs
from .manifests import Manifests
from .view import View

type Turn = Callable[[], Awaitable[None]]
"""Waits until one request more for a manifest may be made."""


class Ahead:
    """Fetches and checks images; of an index, only the platforms that are wanted.

    `may_spend` tells whether a host's rate limit leaves room for one more pull in the background.
    """

    def __init__(self, store: Store, manifests: Manifests, blobs: Blobs, may_spend: Callable[[str], bool]) -> None:
        self._store = store
        self._manifests = manifests
        self._blobs = blobs
        self._may_spend = may_spend

    def children(self, digest: Digest) -> tuple[Descriptor, ...] | None:
        """What a stored manifest refers to; None when it is not stored."""
        record = self._store.manifest(digest)
        try:
            return None if record is None else parse_manifest(record.body)
        except ManifestInvalid:
            return None

    def pulled_platforms(self, digest: Digest) -> set[str]:
        """The platforms of a stored index whose manifests clients have asked for."""
        return {
            child.platform
            for child in self.children(digest) or ()
            if child.is_manifest and child.platform is not None and self._store.was_requested(child.digest)
        }

    async def fetch(self, view: View, digest: Digest, platforms: Set[str], turn: Turn | None = None) -> None:
        """Have a manifest with all its blobs in the store, of an index those of `platforms`; raises `HubcacheError`.

        The image was found worth it: its parts count as asked for as often as admission wants.
        """
        if not self._store.has(digest):
            if not self._may_spend(view.host):
                raise TooManyRequests("what is left of the rate limit is for clients")
            if turn is not None:
                await turn()
        found = await self._manifests.by_digest(view, digest, head=False)
        for child in parse_manifest(found.body or b"{}"):
            if not child.is_manifest:
                if view.upstream.is_paused("manifest", ""):
                    raise TooManyRequests("the registry wants us to pause")
                self._store.vouch(child.digest)
                await self._blobs.fetch(view, child.digest)
            elif matches(child.platform, platforms):
                self._store.vouch(child.digest)
                await self.fetch(view, child.digest, platforms, turn)

    def is_complete(self, digest: Digest, platforms: Set[str]) -> bool:
        """Whether a pull for any of `platforms` finds everything in the store."""
        children = self.children(digest)
        if children is None:
            return False
        wanted = [child for child in children if not child.is_manifest or matches(child.platform, platforms)]
        if children and not wanted:
            return False
        return all(
            self.is_complete(child.digest, platforms) if child.is_manifest else self._store.has(child.digest)
            for child in wanted
        )


def matches(platform: str | None, platforms: Set[str]) -> bool:
    """Whether a platform of an index is among those wanted; a wanted one without variant takes any variant."""
    if platform is None:
        return False
    return platform in platforms or platform[: platform.rindex("/") + 1] in platforms
