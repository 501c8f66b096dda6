"""Manifests by tag and by digest: from the store where that is right, else from the upstream, and then stored."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from ..decide.policy import Freshness, freshness, may_serve_stale
from ..decide.records import ManifestRecord, TagRecord
from ..oci.digest import Digest
from ..oci.errors import (
    BadUpstream,
    Denied,
    ManifestInvalid,
    ManifestUnknown,
    RegistryError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ..oci.manifest import parse_manifest
from ..oci.media import COMMON_TYPES
from ..store.store import Store
from ..transfer.coalesce import Coalescer
from ..transfer.upstream_response import FetchedManifest
from . import cache_status
from .access import Access
from .best_effort import BestEffortWriter
from .media_types import MediaTypes
from .messages import Result
from .repository_view import RepositoryView

PATIENCE_SECONDS = 2.0
"""A client that could be served a stale copy waits this long for the upstream's word, not for its time-outs."""

MAX_REVALIDATIONS = 64
"""Validations that nobody waits for at the same time; beyond them, clients wait for their own."""

type _Question = tuple[str, str, str, str, str, bool]

_ANY = ", ".join((*COMMON_TYPES, "*/*"))


@dataclass(frozen=True, slots=True)
class ManifestResult:
    """A manifest to answer with; `body` is None when only a HEAD was wanted and the bytes are not here."""

    digest: Digest
    media_type: str
    size: int
    body: bytes | None
    result: Result
    cache_status: str


class CachedManifests:
    """Looks manifests up. Times are in seconds; `clock` gives seconds since the epoch."""

    def __init__(
        self, store: Store, writer: BestEffortWriter, access: Access, clock: Callable[[], float] = time.time
    ) -> None:
        self.tag_lifetime = 60.0
        self.max_stale = 0.0
        self.while_revalidate = 0.0
        self._store = store
        self._writer = writer
        self._access = access
        self._clock = clock
        self._fetches = Coalescer[_Question, ManifestResult]()
        self._revalidations: set[asyncio.Task[ManifestResult]] = set()
        self._types = MediaTypes(store, writer)

    async def by_digest(self, view: RepositoryView, digest: Digest, *, head: bool) -> ManifestResult:
        """A manifest by digest; it never goes stale, but must belong to a repository that is open to the view."""
        stored = self._stored(view.host, digest, Result.HIT, cache_status.hit())
        if stored is not None and self._access.can_read(view.host, view.repository, digest, view.authorization):
            return stored
        key = (*view.key, str(digest), "", head)
        try:
            spare = self._spare(view, digest, "upstream is slow")
            return await self._patiently(key, lambda: self._fetch_digest(view, digest, head), spare is not None)
        except (Unavailable, TooManyRequests, BadUpstream) as error:
            spare = self._spare(view, digest, error.message)
            if spare is None:
                raise
            return spare

    def _spare(self, view: RepositoryView, digest: Digest, reason: str) -> ManifestResult | None:
        """What can be served of a digest although the upstream does not answer."""
        if not self._access.can_read(view.host, view.repository, digest, view.authorization, outage=True):
            return None
        return self._stored(view.host, digest, Result.STALE, cache_status.stale(0, reason))

    def _body(self, host: str, digest: Digest) -> bytes | None:
        """The bytes of a stored manifest, if it is also this registry's."""
        record = self._store.manifest(digest)
        return None if record is None or not self._access.belongs_to(host, digest) else record.body

    def _stored(
        self, host: str, digest: Digest, result: Result, status: str, media_type: str | None = None
    ) -> ManifestResult | None:
        """A stored manifest for clients of this registry. It is called what its bytes tell, else `media_type`."""
        body = self._body(host, digest)
        called = None if body is None else self._types.of(host, digest, body) or media_type
        return (
            None if body is None or called is None else ManifestResult(digest, called, len(body), body, result, status)
        )

    async def by_tag(self, view: RepositoryView, tag: str, negotiation: str, *, head: bool) -> ManifestResult:
        """A manifest by tag, as the upstream would answer this `Accept` negotiation."""
        record = self._store.tags.get(view.host, view.repository, tag).get(negotiation)
        now = self._clock()
        if freshness(record, now, self.tag_lifetime) is Freshness.FRESH:
            assert record is not None
            if self._access.can_read_repository(view.host, view.repository, view.authorization):
                ttl = record.validated_at + self.tag_lifetime - now
                found = self._remembered(view, record, head, Result.HIT, cache_status.hit(ttl))
                if found is not None:
                    return found
        at_once = self._while_revalidating(view, tag, negotiation, record, head)
        if at_once is not None:
            return at_once
        spare = self._stale(view, record, head, "upstream is slow")
        try:
            return await self._patiently(
                (*view.key, tag, negotiation, head),
                lambda: self.validate(view, tag, negotiation, head),
                spare is not None,
            )
        except (Unavailable, TooManyRequests, BadUpstream) as error:
            spare = self._stale(view, record, head, error.message)
            if spare is None:
                raise
            return spare

    def _while_revalidating(
        self, view: RepositoryView, tag: str, negotiation: str, record: TagRecord | None, head: bool
    ) -> ManifestResult | None:
        """What can be served of a tag for a moment after its lifetime, while the registry is asked what it is now
        (RFC 5861 section 3); None where the client is to wait for that. The public's view only: whether a reader may
        still see it is for the registry to say."""
        if (
            record is None
            or view.authorization is not None
            or not self._access.can_read_repository(view.host, view.repository, None)
        ):
            return None
        over = self._clock() - record.validated_at - self.tag_lifetime
        if not 0 <= over < self.while_revalidate:
            return None
        found = self._remembered(view, record, head, Result.STALE, cache_status.stale(over, "revalidating"))
        if found is None:
            return None
        wants_head = found.body is None
        key = (*view.key, tag, negotiation, wants_head)
        if not self._fetches.is_running(key):
            if len(self._revalidations) >= MAX_REVALIDATIONS:
                return None
            task = self._fetches.start(key, lambda: self.validate(view, tag, negotiation, wants_head))
            self._revalidations.add(task)
            task.add_done_callback(self._revalidations.discard)
        return found

    def _stale(self, view: RepositoryView, record: TagRecord | None, head: bool, reason: str) -> ManifestResult | None:
        """What can be served of a tag although the upstream does not answer."""
        now = self._clock()
        if record is None or not self._access.can_read_repository(
            view.host, view.repository, view.authorization, outage=True
        ):
            return None
        if not may_serve_stale(record, now, self.tag_lifetime, self.max_stale):
            return None
        over = now - record.validated_at - self.tag_lifetime
        return self._remembered(view, record, head, Result.STALE, cache_status.stale(over, reason))

    async def _patiently(
        self, key: _Question, work: Callable[[], Coroutine[Any, Any, ManifestResult]], spare: bool
    ) -> ManifestResult:
        """Coalesced work; with a `spare` answer at hand, waited for only a while (it goes on without us)."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if spare else None):
                return await self._fetches.run(key, work)
        except TimeoutError as error:
            raise Unavailable("upstream is slow") from error

    def _remembered(
        self, view: RepositoryView, record: TagRecord, head: bool, result: Result, status: str
    ) -> ManifestResult | None:
        """What a tag record says, if that is enough: its manifest is stored, or only a HEAD is wanted."""
        stored = self._stored(view.host, record.digest, result, status, record.media_type)
        if stored is not None or not head:
            return stored
        return ManifestResult(record.digest, record.media_type, record.size, None, result, status)

    async def _fetch_digest(self, view: RepositoryView, digest: Digest, head: bool) -> ManifestResult:
        since = self._access.raise_remembered_error(view.host, view.repository, view.request_key(str(digest), ""))
        try:
            if self._body(view.host, digest) is not None or head or view.needs_anonymous_check:
                told = await view.upstream.head_manifest(view.repository, digest, _ANY, view.authorization)
                await self._access.record_accepted(view.host, view.repository, view.authorization)
                body = self._body(view.host, digest)  # not before: whose it is may have changed meanwhile
                if body is not None:
                    await self._writer.put_links(view.host, view.repository, {digest: len(body)})
                    called = await self._types.learn(view.host, digest, body, told.media_type)
                    return ManifestResult(digest, called, len(body), body, Result.REVALIDATED, cache_status.validated())
                if head and told.size is not None:
                    status = cache_status.fetched(stored=False)
                    return ManifestResult(digest, told.media_type, told.size, None, Result.MISS, status)
            return await self._get(view, digest, _ANY)
        except (ManifestUnknown, Unauthorized, Denied) as error:
            await self._refused(view, str(digest), error, since)
            if view.authorization is None:  # not before: what turned private is found by its links
                await self._writer.unlink(view.host, view.repository, digest)
            raise

    async def validate(self, view: RepositoryView, tag: str, negotiation: str, head: bool) -> ManifestResult:
        """Ask the upstream what the tag is now: by HEAD where that can be enough, since a GET counts as a pull."""
        since = self._access.raise_remembered_error(view.host, view.repository, view.request_key(tag, negotiation))
        asked_at = self._clock()
        change_number = self._writer.change_number(view.host, view.repository, tag)
        known = self._store.tags.get(view.host, view.repository, tag).get(negotiation)
        try:
            found = None
            if head or known is not None or view.needs_anonymous_check:
                found = await self._by_head(view, tag, negotiation, head, known)
            if found is None:
                found = await self._get(view, tag, negotiation)
        except (ManifestUnknown, Unauthorized, Denied) as error:
            if known is not None and view.authorization is None:
                await self._writer.drop_tag(view.host, view.repository, tag)
            await self._refused(view, tag, error, since, negotiation)
            raise
        record = TagRecord(found.digest, found.media_type, found.size, asked_at)
        await self._writer.put_tag(view.host, view.repository, tag, negotiation, record, change_number)
        return found

    async def check_tag(self, view: RepositoryView, tag: str, negotiation: str, known: TagRecord) -> Digest | None:
        """What the upstream says a tag is now; None when its HEAD does not tell. A tag that is where it was counts as
        validated; where it moved to is remembered by nobody."""
        since = self._access.raise_remembered_error(view.host, view.repository, view.request_key(tag, negotiation))
        asked_at = self._clock()
        change_number = self._writer.change_number(view.host, view.repository, tag)
        try:
            told = await view.upstream.head_manifest(view.repository, tag, negotiation, view.authorization)
        except (Unauthorized, Denied) as error:
            await self._writer.drop_tag(view.host, view.repository, tag)
            await self._refused(view, tag, error, since, negotiation)
            raise
        await self._access.record_accepted(view.host, view.repository, view.authorization)
        if told.digest == known.digest:
            validated = replace(known, validated_at=asked_at)
            await self._writer.put_tag(view.host, view.repository, tag, negotiation, validated, change_number)
        return told.digest

    async def extend_freshness(self, view: RepositoryView, tag: str, negotiation: str, record: TagRecord) -> None:
        """Let a tag stay as it is for another lifetime, while what it moved to is being fetched."""
        change_number = self._writer.change_number(view.host, view.repository, tag)
        prolonged = replace(record, validated_at=self._clock())
        await self._writer.put_tag(view.host, view.repository, tag, negotiation, prolonged, change_number)

    async def forget(self, host: str, repository: str, reference: str) -> None:
        """A tag or a manifest was pushed or removed through this proxy."""
        if ":" in reference:
            await self._writer.forget_manifest(host, repository, Digest.parse(reference))
        else:
            await self._writer.drop_tag(host, repository, reference)

    async def _by_head(
        self, view: RepositoryView, tag: str, negotiation: str, head: bool, known: TagRecord | None
    ) -> ManifestResult | None:
        """The answer as far as a HEAD gives it; None when the upstream's HEAD does not tell enough."""
        try:
            told = await view.upstream.head_manifest(view.repository, tag, negotiation, view.authorization)
        except ManifestUnknown:
            if not self._access.can_read_repository(view.host, view.repository, None):
                raise
            # Has the repository gone, or only the tag? A HEAD has no body to say so. What is missing counts no pull.
            return await self._take(
                view, await view.upstream.get_manifest(view.repository, tag, negotiation, view.authorization)
            )
        await self._access.record_accepted(view.host, view.repository, view.authorization)
        if told.digest is None or told.size is None:
            return None
        record = TagRecord(told.digest, told.media_type, told.size, self._clock())
        if known is not None and known.digest == told.digest:
            found = self._remembered(view, record, head, Result.REVALIDATED, cache_status.validated())
        else:
            found = self._remembered(view, record, head, Result.MISS, cache_status.fetched(stored=False))
        if found is None:
            return await self._get(view, told.digest, negotiation)
        await self._writer.put_links(view.host, view.repository, {told.digest: told.size})
        return found

    async def _get(self, view: RepositoryView, reference: str | Digest, accept: str) -> ManifestResult:
        """A counted GET, on the first of the credentials that may be used and are not refused or used up; stored.

        Where there are several, the last is none: what is missing for one account is only missing when that says so.
        The caller has made sure that the public may read this digest, by an anonymous request just now; what a tag is
        for an account, it may not be for the public.
        """
        *others, last = await view.download_authorizations() if isinstance(reference, Digest) else [view.authorization]
        for authorization in others:
            try:
                return await self._take(
                    view, await view.upstream.get_manifest(view.repository, reference, accept, authorization)
                )
            except (Unauthorized, Denied, ManifestUnknown, TooManyRequests):
                continue
        found = await self._take(view, await view.upstream.get_manifest(view.repository, reference, accept, last))
        await self._access.record_accepted(view.host, view.repository, view.authorization)
        return found

    async def _take(self, view: RepositoryView, fetched: FetchedManifest) -> ManifestResult:
        """Check and store a fetched manifest, and that all it refers to belongs to the repository."""
        try:
            children = parse_manifest(fetched.body)
        except ManifestInvalid as error:
            raise BadUpstream(f"upstream sent no manifest: {error.message}", error.detail) from error
        digest, size = fetched.digest, len(fetched.body)
        links: dict[Digest, int | None] = {child.digest: child.size for child in children}
        private = view.authorization is not None
        if not await self._writer.record_source(view.host, view.repository, digest, size, private=private) and private:
            return ManifestResult(
                digest, fetched.media_type, size, fetched.body, Result.MISS, cache_status.fetched(stored=False)
            )
        called = await self._types.learn(view.host, digest, fetched.body, fetched.media_type)
        stored = await self._writer.put_manifest(digest, ManifestRecord(called, fetched.body))
        await self._writer.put_links(view.host, view.repository, links, confirmed=False)
        return ManifestResult(digest, called, size, fetched.body, Result.MISS, cache_status.fetched(stored=stored))

    async def _refused(
        self, view: RepositoryView, reference: str, error: RegistryError, since: int, negotiation: str = ""
    ) -> None:
        """Remember a refusal, for this view only."""
        if not isinstance(error, ManifestUnknown):
            await self._access.record_refused(view.host, view.repository, view.authorization)
        elif view.authorization is None:
            await self._access.expire_visibility(view.host, view.repository, error)
        question = view.request_key(reference, negotiation)
        self._access.remember_error(view.host, view.repository, question, error, since)
