"""Manifests by digest, as nodes share them: one object in the bucket for each manifest of a repository.

Its bytes are right or do not match the digest. That every client may read them is shown by the time at which the
registry last answered an anonymous request for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..oci.digest import Digest
from ..oci.errors import RegistryError
from ..transfer.upstream_response import FetchedManifest
from . import keys
from .answer_objects import Version
from .answer_records import ManifestAnswer, read_manifest, write_manifest
from .shared_answers import Update, Write
from .sharing import Sharing
from .values import Fields, text_field


@dataclass(frozen=True, slots=True)
class ManifestLookup:
    """Finds one manifest of a repository by its digest, and what to write about it.

    `is_confirmed`: the registry has just shown that every client may read it, so that its bytes are sufficient. The
    times are as in `TagLookup`.
    """

    sharing: Sharing
    host: str
    repository: str
    digest: Digest
    wall_clock: Callable[[], float]
    started_at: float
    is_confirmed: bool = False

    @property
    def key(self) -> str:
        """The key of the manifest's object."""
        return keys.manifest(self.host, self.repository, self.digest)

    @property
    def lease(self) -> str:
        """The name of the lease of the node that asks the registry."""
        return f"manifest/{keys.hashed(self.host, self.repository, str(self.digest))}"

    def find(self, version: Version) -> FetchedManifest | None:
        """Return the manifest if every client may read it, else None."""
        answer = self._read(version.fields)
        if answer is None:
            return None
        answered_at = self._shown_at(answer)
        if self.is_confirmed:
            return self._fetched(answer, self.started_at if answered_at is None else answered_at)
        if answered_at is None or not self.sharing.shows_access(answered_at, self.wall_clock()):
            return None
        return self._fetched(answer, answered_at)

    def find_stale(self, version: Version) -> FetchedManifest | None:
        """Return the manifest if it may be used while the registry does not answer."""
        answer = self._read(version.fields)
        answered_at = None if answer is None else self._shown_at(answer)
        if answer is None or answered_at is None:
            return None
        is_usable = self.sharing.shows_access_stale(answered_at, self.wall_clock())
        return self._fetched(answer, answered_at) if is_usable else None

    def node(self, version: Version) -> str:
        """Return the id of the node that fetched the manifest."""
        return text_field(version.fields, "node") or ""

    def has_answer(self, version: Version) -> bool:
        """Whether the object has the bytes, whatever is known about access."""
        return self._read(version.fields) is not None

    def find_bytes(self, version: Version, answered_at: float) -> FetchedManifest | None:
        """Return the manifest with the time of an answer that showed that every client may read it."""
        answer = self._read(version.fields)
        return None if answer is None else self._fetched(answer, answered_at)

    def writes(self, version: Version | None, fetched: FetchedManifest, *, is_anonymous: bool) -> Sequence[Write]:
        """Return what to write after the registry delivered the manifest, or answered a HEAD of it.

        An answer to a request with credentials shows nothing about access. Neither does one whose object was not read
        before the request, if there ever was a push or delete: it may have come later.
        """
        at = self.sharing.clock.to_bucket(fetched.answered_at) if is_anonymous else 0.0
        answer = ManifestAnswer(fetched.media_type, fetched.body, at)
        changed = ManifestAnswer(fetched.media_type, fetched.body, 0.0)

        def update(fields: Fields) -> Fields:
            is_unknown = version is None and text_field(fields, "change")
            return self._update(changed if is_unknown else answer)(fields)

        return (Write(self.key, update, version),)

    def writes_of_error(self, version: Version, error: RegistryError) -> Sequence[Write]:
        """Return what to write after the registry answered an anonymous request with an error: it drops the manifest.

        The error itself is not written: it may be about a private repository, or a digest that is pushed by a tag next.
        """
        if not version.fields:
            self.sharing.count_failure()
            return ()
        at = self.sharing.clock.to_bucket(self.started_at)

        def update(fields: Fields) -> Fields:
            before = self._read(fields)
            return fields if before is None or before.at > at else {}

        return (Write(self.key, update, version),) if self.has_answer(version) else ()

    def _read(self, fields: Fields) -> ManifestAnswer | None:
        """Return the manifest; a time in the future shows nothing about access, but the bytes are verified."""
        answer = read_manifest(fields, self.digest)
        return replace(answer, at=0.0) if answer is not None and self.sharing.is_ahead(answer.at) else answer

    def _shown_at(self, answer: ManifestAnswer) -> float | None:
        """Return when the registry showed that every client may read the manifest; None when that does not count."""
        answered_at = self.sharing.local(answer.at, self.wall_clock())
        if answered_at is None or self.sharing.is_outdated(answered_at, self.host, self.repository, str(self.digest)):
            return None
        return answered_at

    def _fetched(self, answer: ManifestAnswer, answered_at: float) -> FetchedManifest:
        return FetchedManifest(self.digest, answer.media_type, answer.body, answered_at)

    def _update(self, answer: ManifestAnswer) -> Update:
        def update(fields: Fields) -> Fields:
            before = self._read(fields)
            has_newer = before is not None and before.at >= answer.at
            return fields if has_newer else write_manifest(answer, self.sharing.node)

        return update
