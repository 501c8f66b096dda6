"""Manifests by tag and by digest: from the store where that is right, else from the upstream, and then stored."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..decide.policy import Freshness, freshness
from ..decide.records import ManifestRecord, TagRecord
from ..oci.digest import Digest
from ..oci.errors import (
    BadUpstream,
    Denied,
    ManifestInvalid,
    ManifestUnknown,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ..oci.manifest import parse_manifest
from ..oci.media import COMMON
from ..oci.registry import Registry
from ..store.store import Store
from ..transfer.coalesce import Coalescer
from ..transfer.upstream import Fetched, Upstream
from . import cache_status
from .memory import Memory
from .messages import Result


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest to answer with; `body` is None when only a HEAD was wanted and the bytes are not here."""

    digest: Digest
    media_type: str
    size: int
    body: bytes | None
    result: Result
    cache_status: str


class Manifests:
    """Looks manifests up. `tag_lifetime` is in seconds; `clock` gives seconds since the epoch."""

    def __init__(
        self, store: Store, memory: Memory, tag_lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.tag_lifetime = tag_lifetime
        self._store = store
        self._memory = memory
        self._clock = clock
        self._fetches = Coalescer[tuple[str, str, str, str, bool], Found]()

    async def by_digest(self, upstream: Upstream, repository: str, digest: Digest, *, head: bool) -> Found:
        """A manifest by digest; it never goes stale, but must be known to belong to the repository."""
        host = upstream.registry.host
        record = self._store.manifest(digest)
        if record is not None and self._store.link(host, repository, digest) is not None:
            return self._stored(digest, record, Result.HIT, cache_status.hit())
        key = (host, repository, str(digest), "", head)
        return await self._fetches.run(key, lambda: self._fetch_digest(upstream, repository, digest, head))

    async def by_tag(self, upstream: Upstream, repository: str, tag: str, negotiation: str, *, head: bool) -> Found:
        """A manifest by tag, as the upstream would answer this `Accept` negotiation."""
        host = upstream.registry.host
        record = self._store.tags(host, repository, tag).get(negotiation)
        if freshness(record, self._clock(), self.tag_lifetime) is Freshness.FRESH:
            assert record is not None
            ttl = record.validated_at + self.tag_lifetime - self._clock()
            found = self._remembered(record, head, Result.HIT, cache_status.hit(ttl))
            if found is not None:
                return found
        key = (host, repository, tag, negotiation, head)
        try:
            return await self._fetches.run(key, lambda: self._validate(upstream, repository, tag, negotiation, head))
        except (Unavailable, TooManyRequests, BadUpstream) as error:
            if record is None:
                raise
            over = self._clock() - record.validated_at - self.tag_lifetime
            found = self._remembered(record, head, Result.STALE, cache_status.stale(over, error.message))
            if found is None:
                raise
            return found
        except (ManifestUnknown, Unauthorized, Denied):
            if record is not None:
                await self._memory.forget_tag(host, repository, tag)
            raise

    def _remembered(self, record: TagRecord, head: bool, result: Result, status: str) -> Found | None:
        """What a tag record says, if that is enough: its manifest is stored, or only a HEAD is wanted."""
        manifest = self._store.manifest(record.digest)
        if manifest is not None:
            return self._stored(record.digest, manifest, result, status)
        return Found(record.digest, record.media_type, record.size, None, result, status) if head else None

    @staticmethod
    def _stored(digest: Digest, record: ManifestRecord, result: Result, status: str) -> Found:
        return Found(digest, record.media_type, len(record.body), record.body, result, status)

    async def _fetch_digest(self, upstream: Upstream, repository: str, digest: Digest, head: bool) -> Found:
        accept = ", ".join(COMMON) + ", */*"
        record = self._store.manifest(digest)
        if record is not None or head:
            told = await upstream.head_manifest(repository, digest, accept)
            if record is not None:
                await self._memory.link(upstream.registry.host, repository, {digest: len(record.body)})
                return self._stored(digest, record, Result.REVALIDATED, cache_status.validated())
            if told.size is not None:
                status = cache_status.fetched(stored=False)
                return Found(digest, told.media_type, told.size, None, Result.MISS, status)
        return await self._take(upstream.registry, repository, await upstream.get_manifest(repository, digest, accept))

    async def _validate(self, upstream: Upstream, repository: str, tag: str, negotiation: str, head: bool) -> Found:
        """Ask the upstream what the tag is now: by HEAD where that can be enough, since a GET counts as a pull."""
        host = upstream.registry.host
        asked_at = self._clock()
        generation = self._memory.generation(host, repository, tag)
        known = self._store.tags(host, repository, tag).get(negotiation)
        found: Found | None = None
        if head or known is not None:
            told = await upstream.head_manifest(repository, tag, negotiation)
            if told.digest is not None and told.size is not None:
                record = TagRecord(told.digest, told.media_type, told.size, asked_at)
                unchanged = known is not None and known.digest == told.digest
                result, status = (
                    (Result.REVALIDATED, cache_status.validated())
                    if unchanged
                    else (Result.MISS, cache_status.fetched(stored=False))
                )
                found = self._remembered(record, head, result, status)
                if found is None:
                    fetched = await upstream.get_manifest(repository, told.digest, negotiation)
                    found = await self._take(upstream.registry, repository, fetched)
                else:
                    await self._memory.link(host, repository, {told.digest: told.size})
        if found is None:
            fetched = await upstream.get_manifest(repository, tag, negotiation)
            found = await self._take(upstream.registry, repository, fetched)
        record = TagRecord(found.digest, found.media_type, found.size, asked_at)
        await self._memory.tag(host, repository, tag, negotiation, record, generation)
        return found

    async def _take(self, registry: Registry, repository: str, fetched: Fetched) -> Found:
        """Check and store a fetched manifest, and that all it refers to belongs to the repository."""
        try:
            children = parse_manifest(fetched.body)
        except ManifestInvalid as error:
            raise BadUpstream(f"upstream sent no manifest: {error.message}", error.detail) from error
        record = ManifestRecord(fetched.media_type, fetched.body)
        links: dict[Digest, int | None] = {child.digest: child.size for child in children}
        links[fetched.digest] = len(fetched.body)
        stored = await self._memory.manifest(fetched.digest, record)
        await self._memory.link(registry.host, repository, links)
        status = cache_status.fetched(stored=stored)
        return Found(fetched.digest, fetched.media_type, len(fetched.body), fetched.body, Result.MISS, status)
