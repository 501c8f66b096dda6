"""Media types of stored manifests: from the bytes where they state it, else as each registry labels the manifest."""

from cachetools import LRUCache

from ..oci.digest import Digest
from ..oci.media import media_type_of
from ..store.store import Store
from .best_effort import BestEffortWriter

MAX_MANIFESTS = 10_000
"""Manifests whose own media type is kept in memory, so that their bytes are not parsed again."""


class MediaTypes:
    """Media types by digest.

    The same bytes have the same type at every registry, so that no registry can relabel another's manifest.
    """

    def __init__(self, store: Store, writer: BestEffortWriter) -> None:
        self._store = store
        self._writer = writer
        self._from_bytes: LRUCache[Digest, str] = LRUCache(MAX_MANIFESTS)

    def get(self, registry: str, digest: Digest, body: bytes) -> str | None:
        """Return the media type for clients of this registry; None where neither bytes nor registry state one."""
        return self._stated(digest, body) or self._store.registries.media_type(registry, digest)

    async def learn(self, registry: str, digest: Digest, body: bytes, label: str) -> str:
        """Return the media type of a manifest that the registry has just served with this `Content-Type`."""
        stated = self._stated(digest, body)
        if stated is None:
            await self._writer.put_media_type(registry, digest, label)
        return stated or label

    def _stated(self, digest: Digest, body: bytes) -> str | None:
        if digest not in self._from_bytes:
            self._from_bytes[digest] = media_type_of(body) or ""
        return self._from_bytes[digest] or None
