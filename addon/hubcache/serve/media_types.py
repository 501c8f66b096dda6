"""What a stored manifest is called: by its bytes where they tell, else by each registry for itself."""

from cachetools import LRUCache

from ..oci.digest import Digest
from ..oci.media import media_type_of
from ..store.store import Store
from .best_effort import BestEffortWriter

MAX_KNOWN = 10_000
"""Manifests whose bytes need not be read again for their type."""


class MediaTypes:
    """A digest has one type for all, since its bytes are the same for all: no registry can rename another's."""

    def __init__(self, store: Store, writer: BestEffortWriter) -> None:
        self._store = store
        self._writer = writer
        self._by_bytes: LRUCache[Digest, str] = LRUCache(MAX_KNOWN)

    def of(self, registry: str, digest: Digest, body: bytes) -> str | None:
        """The media type for clients of this registry; None where neither the bytes nor the registry told it."""
        return self._told(digest, body) or self._store.registries.media_type(registry, digest)

    async def learn(self, registry: str, digest: Digest, body: bytes, said: str) -> str:
        """The media type, where the registry said this one now."""
        told = self._told(digest, body)
        if told is None:
            await self._writer.put_media_type(registry, digest, said)
        return told or said

    def _told(self, digest: Digest, body: bytes) -> str | None:
        if digest not in self._by_bytes:
            self._by_bytes[digest] = media_type_of(body) or ""
        return self._by_bytes[digest] or None
