"""Writing down what was learned, where a store that cannot take it must not fail the pull.

This is the one place that turns `StorageError` into "go on without": it is reported through `failed`, shown in
`/healthz` and metrics, and the client is served all the same.
"""

from collections.abc import Awaitable, Callable, Mapping

from ..decide.records import ManifestRecord, ReferrersRecord, TagRecord, Visibility
from ..decide.tag_changes import TagChanges
from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..store.store import Store
from .change_numbers import ChangeNumbers


class BestEffortWriter:
    """The store's facts, written at best effort."""

    def __init__(self, store: Store, failed: Callable[[StorageError], None]) -> None:
        self._store = store
        self._failed = failed
        self._moves = ChangeNumbers()

    def change_number(self, registry: str, repository: str, tag: str) -> int:
        """Changes when the tag is moved through this proxy: what was asked before must not be remembered after."""
        return self._moves.current(registry, repository, tag)

    async def put_tag(
        self, registry: str, repository: str, tag: str, negotiation: str, record: TagRecord, change_number: int
    ) -> None:
        """Remember what a tag answered, unless it was moved since `generation`."""
        if change_number == self.change_number(registry, repository, tag):
            await self._attempt(self._store.tags.put(registry, repository, tag, negotiation, record))

    async def put_moves(self, moves: Mapping[tuple[str, str, str], TagChanges]) -> None:
        """Remember when tags moved."""
        await self._attempt(self._store.tags.put_changes(moves))

    async def drop_tag(self, registry: str, repository: str, tag: str) -> None:
        """The tag was moved or is gone."""
        self._moves.advance(registry, repository, tag)
        await self._attempt(self._store.tags.drop(registry, repository, tag))

    async def put_manifest(self, digest: Digest, record: ManifestRecord) -> bool:
        """Store a verified manifest; whether that worked."""
        return await self._attempt(self._store.put_manifest(digest, record))

    async def put_links(
        self,
        registry: str,
        repository: str,
        links: dict[Digest, int | None],
        *,
        confirmed: bool = True,
        given: bool = False,
    ) -> None:
        """Remember that digests belong to a repository, by the upstream's word or (not `confirmed`) a manifest's, or
        because it gave the bytes."""
        await self._attempt(self._store.links.put(registry, repository, links, confirmed=confirmed, given=given))

    async def unlink(self, registry: str, repository: str, digest: Digest) -> None:
        """The upstream says that a digest does not belong to a repository (any more): it may have turned private."""
        link = self._store.links.get(registry, repository, digest)
        if link is None:
            return
        if link.confirmed and self._store.has(digest):
            await self._attempt(self._store.private.add_repository(registry, repository, digest))
        await self._attempt(self._store.links.drop(registry, repository, digest))

    async def forget_link(self, registry: str, repository: str, digest: Digest) -> None:
        """Something was pushed or deleted: whether the repository has it is to be asked anew. That is no sign that it
        turned private."""
        if self._store.links.get(registry, repository, digest) is not None:
            await self._attempt(self._store.links.drop(registry, repository, digest))

    async def forget_manifest(self, registry: str, repository: str, digest: Digest) -> None:
        """A manifest was pushed or deleted by its digest: the tags that were at it may be gone, too."""
        await self.forget_link(registry, repository, digest)
        await self._attempt(self._store.tags.drop_pointing_to(registry, repository, digest))

    async def mark_private(self, digest: Digest) -> bool:
        """Content is about to be fetched with a client's own credentials; whether that is remembered."""
        return await self._attempt(self._store.private.add(digest))

    async def record_source(
        self, registry: str, repository: str, digest: Digest, size: int | None, *, private: bool = False
    ) -> bool:
        """A registry gave the bytes of a digest, verified; `private`: for a client's own credentials. It is a source of
        its own then of what is private. Whether that is remembered."""
        hosts = self._store.private.sources(digest)
        written = True
        if private or (hosts is not None and registry not in hosts):
            written = await self._attempt(self._store.private.add(digest, registry))
        await self.put_links(registry, repository, {digest: size}, given=True)
        return written

    async def put_media_type(self, registry: str, digest: Digest, media_type: str) -> None:
        """What a registry calls a manifest whose bytes do not tell."""
        if self._store.registries.media_type(registry, digest) != media_type:
            await self._attempt(self._store.registries.put_media_type(registry, digest, media_type))

    async def put_visibility(self, registry: str, repository: str, visibility: Visibility) -> bool:
        """Remember whether a repository is public; whether that worked."""
        return await self._attempt(self._store.registries.put_visibility(registry, repository, visibility))

    async def make_private(self, registry: str, repository: str, visibility: Visibility) -> bool:
        """Remember that a repository is not public any more, and what is private with it; whether that worked."""
        written = await self._attempt(self._store.registries.put_visibility(registry, repository, visibility))
        return await self._attempt(self._store.private.add_repository(registry, repository)) and written

    async def put_referrers(
        self, registry: str, repository: str, subject: Digest, question: str, record: ReferrersRecord
    ) -> None:
        """Remember what was answered about the referrers of a digest."""
        await self._attempt(self._store.tags.put_referrers(registry, repository, subject, question, record))

    async def drop_referrers(self, registry: str, repository: str, subject: Digest | None) -> None:
        """What refers to a digest, or to some digest of the repository, is not what it was."""
        await self._attempt(self._store.tags.drop_referrers(registry, repository, subject))

    async def put_challenge(self, registry: str, challenge: str) -> None:
        """Remember a registry's challenge, so that it can be told while the registry is down."""
        await self._attempt(self._store.registries.put_challenge(registry, challenge))

    async def _attempt(self, write: Awaitable[None]) -> bool:
        try:
            await write
        except StorageError as error:
            self._failed(error)
            return False
        return True
