"""Writing down what was learned, where a store that cannot take it must not fail the pull.

This is the one place that turns `StorageError` into "go on without": it is reported through `failed`, shown in
`/healthz` and metrics, and the client is served all the same.
"""

from collections import Counter
from collections.abc import Awaitable, Callable

from ..decide.records import ManifestRecord, ReferrersRecord, TagRecord, Verdict
from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..store.store import Store


class Memory:
    """The store's facts, written at best effort."""

    def __init__(self, store: Store, failed: Callable[[StorageError], None]) -> None:
        self._store = store
        self._failed = failed
        self._moves: Counter[tuple[str, str, str]] = Counter()

    def generation(self, registry: str, repository: str, tag: str) -> int:
        """Changes when the tag is moved through this proxy: what was asked before must not be remembered after."""
        return self._moves[registry, repository, tag]

    async def tag(
        self, registry: str, repository: str, tag: str, negotiation: str, record: TagRecord, generation: int
    ) -> None:
        """Remember what a tag answered, unless it was moved since `generation`."""
        if generation == self.generation(registry, repository, tag):
            await self._attempt(self._store.put_tag(registry, repository, tag, negotiation, record))

    async def forget_tag(self, registry: str, repository: str, tag: str) -> None:
        """The tag was moved or is gone."""
        self._moves[registry, repository, tag] += 1
        await self._attempt(self._store.drop_tag(registry, repository, tag))

    async def manifest(self, digest: Digest, record: ManifestRecord) -> bool:
        """Store a verified manifest; whether that worked."""
        return await self._attempt(self._store.put_manifest(digest, record))

    async def link(
        self, registry: str, repository: str, links: dict[Digest, int | None], *, confirmed: bool = True
    ) -> None:
        """Remember that digests belong to a repository, by the upstream's word or (not `confirmed`) a manifest's."""
        await self._attempt(self._store.put_links(registry, repository, links, confirmed=confirmed))

    async def unlink(self, registry: str, repository: str, digest: Digest) -> None:
        """The upstream says that a digest does not belong to a repository."""
        if self._store.link(registry, repository, digest) is not None:
            await self._attempt(self._store.drop_link(registry, repository, digest))

    async def forget_digest(self, registry: str, repository: str, digest: Digest) -> None:
        """A manifest was deleted: it and the tags that were at it are gone."""
        await self.unlink(registry, repository, digest)
        await self._attempt(self._store.drop_tags_of(registry, repository, digest))

    async def private(self, digest: Digest) -> bool:
        """Content is about to be fetched with a client's own credentials; whether that is remembered."""
        return await self._attempt(self._store.put_private(digest))

    async def verdict(self, registry: str, repository: str, verdict: Verdict) -> None:
        """Remember whether a repository is public."""
        await self._attempt(self._store.put_verdict(registry, repository, verdict))

    async def turned_private(self, registry: str, repository: str, verdict: Verdict) -> None:
        """Remember that a repository is not public any more, and what is private with it."""
        await self._attempt(self._store.put_verdict(registry, repository, verdict))
        await self._attempt(self._store.hide(registry, repository))

    async def referrers(
        self, registry: str, repository: str, subject: Digest, question: str, record: ReferrersRecord
    ) -> None:
        """Remember what was answered about the referrers of a digest."""
        await self._attempt(self._store.put_referrers(registry, repository, subject, question, record))

    async def forget_referrers(self, registry: str, repository: str, subject: Digest | None) -> None:
        """What refers to a digest, or to some digest of the repository, is not what it was."""
        await self._attempt(self._store.drop_referrers(registry, repository, subject))

    async def challenge(self, registry: str, challenge: str) -> None:
        """Remember a registry's challenge, so that it can be told while the registry is down."""
        await self._attempt(self._store.put_challenge(registry, challenge))

    async def _attempt(self, write: Awaitable[None]) -> bool:
        try:
            await write
        except StorageError as error:
            self._failed(error)
            return False
        return True
