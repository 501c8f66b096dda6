"""Facts about tags: which digests they had, when they changed, and which manifests refer to a digest."""

from collections.abc import Mapping

from ..decide.records import (
    ReferrersRecord,
    TagRecord,
    decode_referrers,
    decode_tags,
    encode_referrers,
    encode_tags,
)
from ..decide.tag_changes import TagChanges
from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..oci.image_name import ImageName
from ..oci.reference import subject_of_tag
from . import fact_rows
from .fact_rows import decode_or
from .index import Index
from .index_access import IndexAccess

MAX_NEGOTIATIONS = 16
"""Answers stored for one tag; clients that send ever new `Accept` headers must not grow the store."""

MAX_QUESTIONS = 32
"""Answers stored about the referrers of one digest: listings by type and by page, and tags made from the digest."""


class TagFacts:
    """Facts about tags and referrers, in rows by registry, repository, and tag or digest."""

    def __init__(self, index: IndexAccess) -> None:
        self._index = index
        self._pinned_referrers: dict[tuple[str, str], dict[Digest, set[Digest]]] = {}
        """Referrers by subject for repositories with a pin, until something about the repository changes."""

    # -- tags ---------------------------------------------------------------------------------------------------

    def get(self, registry: str, repository: str, tag: str) -> dict[str, TagRecord]:
        """Return the stored answers for a tag, by negotiation."""
        return decode_or(decode_tags, self._index.read(_tag_key(registry, repository, tag)), {})

    def digests(self, image: ImageName) -> frozenset[Digest]:
        """Return the digest of an image, or those that its tag has for different clients."""
        if isinstance(image.reference, Digest):
            return frozenset({image.reference})
        records = self.get(image.host, image.repository, image.reference)
        return frozenset(record.digest for record in records.values())

    async def put(self, registry: str, repository: str, tag: str, negotiation: str, record: TagRecord) -> None:
        """Store the registry's answer for a tag."""
        index = self._index.opened()

        def merged(value: object) -> str:
            records = decode_or(decode_tags, value, {}) | {negotiation: record}
            return encode_tags(_latest(records, MAX_NEGOTIATIONS))

        key = _tag_key(registry, repository, tag)
        await self._index.write(lambda: index.update(key, merged, fact_rows.FACT_LIFETIME))
        if subject_of_tag(tag) is not None:
            self._forget_referrers(registry, repository)

    async def drop(self, registry: str, repository: str, tag: str) -> None:
        """Delete a tag: it was pushed or deleted."""
        index = self._index.opened()
        await self._index.write(lambda: index.delete(_tag_key(registry, repository, tag)))
        self._forget_referrers(registry, repository)

    async def drop_pointing_to(self, registry: str, repository: str, digest: Digest) -> None:
        """Delete the tags of a repository that point to this digest."""
        index, prefix = self._index.opened(), _tag_key(registry, repository, "")

        def drop() -> None:
            rows = [(key, value) for key, value, _, _ in index.rows(prefix)]
            dropped = [
                key
                for key, value in rows
                if any(record.digest == digest for record in decode_or(decode_tags, value, {}).values())
            ]
            index.set_many({}, deleted=dropped)

        await self._index.write(drop)
        self._forget_referrers(registry, repository)

    # -- when tags changed --------------------------------------------------------------------------------------

    def changes(self, registry: str, repository: str, tag: str) -> TagChanges | None:
        """Return when a tag was seen to change."""
        return decode_or(TagChanges.decode, self._index.read(f"moves/{registry}/{repository}:{tag}"), None)

    async def put_changes(self, changes: Mapping[tuple[str, str, str], TagChanges]) -> None:
        """Store when tags changed, by registry, repository and tag."""
        index = self._index.opened()
        rows: dict[str, object] = {
            f"moves/{registry}/{repository}:{tag}": one.encode() for (registry, repository, tag), one in changes.items()
        }
        await self._index.write(lambda: index.set_many(rows, fact_rows.FACT_LIFETIME))

    # -- referrers ----------------------------------------------------------------------------------------------

    def referrers(self, registry: str, repository: str, subject: Digest) -> dict[str, ReferrersRecord]:
        """Return the stored answers about the referrers of a digest, by question."""
        return decode_or(decode_referrers, self._index.read(_referrers_key(registry, repository, subject)), {})

    async def put_referrers(
        self, registry: str, repository: str, subject: Digest, question: str, record: ReferrersRecord
    ) -> None:
        """Store the registry's answer to a question about the referrers of a digest."""
        index = self._index.opened()

        def merged(value: object) -> str:
            records = decode_or(decode_referrers, value, {}) | {question: record}
            return encode_referrers(_latest(records, MAX_QUESTIONS))

        key = _referrers_key(registry, repository, subject)
        await self._index.write(lambda: index.update(key, merged, fact_rows.FACT_LIFETIME))
        self._forget_referrers(registry, repository)

    async def drop_referrers(self, registry: str, repository: str, subject: Digest | None = None) -> None:
        """Delete the answers about the referrers of a digest; without `subject`, of all digests of the repository."""
        index, prefix = self._index.opened(), _referrers_key(registry, repository, subject or "")
        await self._index.write(lambda: index.set_many({}, deleted=[key for key, _, _, _ in index.rows(prefix)]))
        self._forget_referrers(registry, repository)

    def referrers_by_subject(self, registry: str, repository: str) -> dict[Digest, set[Digest]]:
        """Return, by subject, the stored listings of its referrers and the manifests at tags made from its digest.

        For repositories with a pin: many rows are read, and the result is kept in memory.
        """
        known = self._pinned_referrers.get((registry, repository))
        if known is None and self._index.current is not None:
            try:
                known = read_referrers(self._index.current, registry, repository)
                self._pinned_referrers[registry, repository] = known
            except StorageError as error:
                self._index.note_failure(error)
        return known or {}

    def _forget_referrers(self, registry: str, repository: str) -> None:
        self._pinned_referrers.pop((registry, repository), None)


def _tag_key(registry: str, repository: str, tag: str) -> str:
    return f"tag/{registry}/{repository}:{tag}"


def _referrers_key(registry: str, repository: str, subject: str) -> str:
    return f"referrers/{registry}/{repository}@{subject}"


def _latest[R: (TagRecord, ReferrersRecord)](records: dict[str, R], count: int) -> dict[str, R]:
    """Return the `count` records that were validated last."""
    return dict(sorted(records.items(), key=lambda item: item[1].validated_at)[-count:])


def read_referrers(index: Index, registry: str, repository: str) -> dict[Digest, set[Digest]]:
    """Return what `TagFacts.referrers_by_subject` returns, from the rows, in any thread; raises `StorageError`."""
    found: dict[Digest, set[Digest]] = {}
    prefix = _referrers_key(registry, repository, "")
    for key, value, _, _ in index.rows(prefix):
        records = decode_or(decode_referrers, value, {}).values()
        listings = {record.digest for record in records if record.digest is not None}
        found.setdefault(Digest.parse(key.removeprefix(prefix)), set()).update(listings)
    prefix = _tag_key(registry, repository, "")
    for key, value, _, _ in index.rows(f"{prefix}sha256-"):
        subject = subject_of_tag(key.removeprefix(prefix))
        if subject is not None:
            manifests = {record.digest for record in decode_or(decode_tags, value, {}).values()}
            found.setdefault(subject, set()).update(manifests)
    return found
