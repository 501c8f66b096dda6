"""Writes to the store that must not fail a pull.

Only this module continues after a `StorageError`: it reports the error through `failed`, which shows it in `/healthz`
and metrics, and the client is still served.
"""

from collections.abc import Awaitable, Callable, Mapping

from ..decide.records import ManifestRecord, ReferrersRecord, TagRecord, Visibility
from ..decide.tag_changes import TagChanges
from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..store.store import Store
from .change_numbers import ChangeNumbers


class BestEffortWriter:
    """Writes facts and content from registries. Methods that return a bool return whether the write succeeded."""

    def __init__(self, store: Store, failed: Callable[[StorageError], None]) -> None:
        self._store = store
        self._failed = failed
        self._changes = ChangeNumbers()

    def change_number(self, registry: str, repository: str, tag: str) -> int:
        """Return a number that changes when the tag is pushed or deleted through this proxy."""
        return self._changes.current(registry, repository, tag)

    async def put_tag(
        self, registry: str, repository: str, tag: str, negotiation: str, record: TagRecord, change_number: int
    ) -> None:
        """Write what a tag refers to, unless the tag changed since `change_number`."""
        if change_number == self.change_number(registry, repository, tag):
            await self._attempt(self._store.tags.put(registry, repository, tag, negotiation, record))

    async def put_moves(self, moves: Mapping[tuple[str, str, str], TagChanges]) -> None:
        """Write the times at which tags moved."""
        await self._attempt(self._store.tags.put_changes(moves))

    async def drop_tag(self, registry: str, repository: str, tag: str) -> None:
        """Forget what a tag refers to: it was pushed or deleted, or is missing upstream."""
        self._changes.advance(registry, repository, tag)
        await self._attempt(self._store.tags.drop(registry, repository, tag))

    async def put_manifest(self, digest: Digest, record: ManifestRecord) -> bool:
        """Store a verified manifest."""
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
        """Write that digests belong to a repository, with their sizes where known.

        `confirmed`: the registry says so, not only a manifest; `given`: the registry delivered the bytes.
        """
        await self._attempt(self._store.links.put(registry, repository, links, confirmed=confirmed, given=given))

    async def unlink(self, registry: str, repository: str, digest: Digest) -> None:
        """Write that a digest does not belong to a repository, according to the registry.

        If it did before, the repository may have turned private, and its content is private from now on.
        """
        link = self._store.links.get(registry, repository, digest)
        if link is None:
            return
        if link.confirmed and self._store.has(digest):
            await self._attempt(self._store.private.add_repository(registry, repository, digest))
        await self._attempt(self._store.links.drop(registry, repository, digest))

    async def forget_link(self, registry: str, repository: str, digest: Digest) -> None:
        """Forget whether a digest belongs to a repository: it was pushed or deleted, which does not make it private."""
        if self._store.links.get(registry, repository, digest) is not None:
            await self._attempt(self._store.links.drop(registry, repository, digest))

    async def forget_manifest(self, registry: str, repository: str, digest: Digest) -> None:
        """Forget a manifest that was pushed or deleted by digest, and the tags that referred to it."""
        await self.forget_link(registry, repository, digest)
        await self._attempt(self._store.tags.drop_pointing_to(registry, repository, digest))

    async def mark_private(self, digest: Digest) -> bool:
        """Mark content as private before it is downloaded with a client's own credentials."""
        return await self._attempt(self._store.private.add(digest))

    async def record_source(
        self, registry: str, repository: str, digest: Digest, size: int | None, *, private: bool = False
    ) -> bool:
        """Write that a registry delivered the verified bytes of a digest; `private`: to a client's own credentials.

        Private content then belongs to this registry, too.
        """
        hosts = self._store.private.sources(digest)
        written = True
        if private or (hosts is not None and registry not in hosts):
            written = await self._attempt(self._store.private.add(digest, registry))
        await self.put_links(registry, repository, {digest: size}, given=True)
        return written

    async def put_media_type(self, registry: str, digest: Digest, media_type: str) -> None:
        """Write how a registry labels a manifest whose bytes do not state their media type."""
        if self._store.registries.media_type(registry, digest) != media_type:
            await self._attempt(self._store.registries.put_media_type(registry, digest, media_type))

    async def put_visibility(self, registry: str, repository: str, visibility: Visibility) -> bool:
        """Write whether a repository is public."""
        return await self._attempt(self._store.registries.put_visibility(registry, repository, visibility))

    async def make_private(self, registry: str, repository: str, visibility: Visibility) -> bool:
        """Write that a repository is not public any more, and mark its content as private."""
        written = await self._attempt(self._store.registries.put_visibility(registry, repository, visibility))
        return await self._attempt(self._store.private.add_repository(registry, repository)) and written

    async def put_referrers(
        self, registry: str, repository: str, subject: Digest, request_key: str, record: ReferrersRecord
    ) -> None:
        """Write what a registry lists as referrers of a digest."""
        await self._attempt(self._store.tags.put_referrers(registry, repository, subject, request_key, record))

    async def drop_referrers(self, registry: str, repository: str, subject: Digest | None) -> None:
        """Forget the referrers of a digest, or of all digests of the repository if `subject` is None."""
        await self._attempt(self._store.tags.drop_referrers(registry, repository, subject))

    async def put_challenge(self, registry: str, challenge: str, *, expires: bool = False) -> None:
        """Write a registry's challenge, with which pings are answered while the registry is down."""
        await self._attempt(self._store.registries.put_challenge(registry, challenge, expires=expires))

    async def _attempt(self, write: Awaitable[None]) -> bool:
        try:
            await write
        except StorageError as error:
            self._failed(error)
            return False
        return True
