"""Manifests that the store can answer with, and the result that a lookup returns."""

from dataclasses import dataclass

from ..decide.records import TagRecord
from ..oci.digest import Digest
from ..store.store import Store
from .access import Access
from .best_effort import BestEffortWriter
from .media_types import MediaTypes
from .messages import Result


@dataclass(frozen=True, slots=True)
class ManifestResult:
    """A manifest to answer with; `body` is None when only a HEAD was requested and the bytes are not stored."""

    digest: Digest
    media_type: str
    size: int
    body: bytes | None
    result: Result
    cache_status: str


class StoredManifests:
    """Looks manifests up in the store; the caller checks whether a view may read them."""

    def __init__(self, store: Store, writer: BestEffortWriter, access: Access) -> None:
        self._store = store
        self._access = access
        self.media_types = MediaTypes(store, writer)

    def body(self, host: str, digest: Digest) -> bytes | None:
        """Return the bytes of a stored manifest that belongs to this registry."""
        record = self._store.manifest(digest)
        return None if record is None or not self._access.belongs_to(host, digest) else record.body

    def find(
        self, host: str, digest: Digest, result: Result, status: str, media_type: str | None = None
    ) -> ManifestResult | None:
        """Return a stored manifest for clients of this registry; `media_type` is used where none is known."""
        body = self.body(host, digest)
        if body is None:
            return None
        known_type = self.media_types.get(host, digest, body) or media_type
        return None if known_type is None else ManifestResult(digest, known_type, len(body), body, result, status)

    def of_tag(self, host: str, record: TagRecord, result: Result, status: str, *, head: bool) -> ManifestResult | None:
        """Return the manifest that a tag refers to; for a HEAD the tag's record is enough."""
        stored = self.find(host, record.digest, result, status, record.media_type)
        if stored is not None or not head:
            return stored
        return ManifestResult(record.digest, record.media_type, record.size, None, result, status)
