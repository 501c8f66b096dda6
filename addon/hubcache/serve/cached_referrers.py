"""What refers to a manifest (signatures, attestations, SBOMs), as the registry lists it: remembered as a tag is.

Clients ask for it beside the image: the referrers API first and, where that is missing, a tag made from the digest
(distribution spec, "Listing Referrers" and "Backwards Compatibility"). An answer 404 is as good as any to them, and
most common, so it is remembered as well.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..decide.policy import Freshness, freshness, may_serve_stale
from ..decide.records import ManifestRecord, ReferrersRecord
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
from ..oci.manifest import parse_image_index
from ..oci.media import OCI_INDEX
from ..oci.reference import subject_of_tag
from ..store.store import Store
from ..transfer.coalesce import Coalescer
from ..transfer.referrers_page import ReferrersPage
from . import cache_status
from .access import Access
from .best_effort import BestEffortWriter
from .cached_manifests import PATIENCE_SECONDS, CachedManifests, ManifestResult
from .messages import Result
from .repository_view import RepositoryView

UNASKED_SECONDS = 10.0
"""A client waits this long for the upstream's word where nothing is known; a pull goes on without."""


@dataclass(frozen=True, slots=True)
class ReferrersResult:
    """A page to answer with: an image index, `OCI-Filters-Applied`, and the query of the next page ("" if none)."""

    digest: Digest
    body: bytes
    filters: str
    following: str
    result: Result
    cache_status: str


class CachedReferrers:
    """Lifetimes are those of tags. `clock` gives seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        writer: BestEffortWriter,
        access: Access,
        manifests: CachedManifests,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._writer = writer
        self._access = access
        self._manifests = manifests
        self._clock = clock
        self._asking = Coalescer[tuple[str, ...], ReferrersResult]()

    async def by_subject(
        self, view: RepositoryView, subject: Digest, query: str, *, known_only: bool = False
    ) -> ReferrersResult:
        """A page of the API; raises `ManifestUnknown` where the registry answers 404, and with `known_only` for all
        that was never asked for."""
        record = self._record(view, subject, "query", query)
        if record is not None and self._is_fresh(view, record):
            ttl = record.validated_at + self._manifests.tag_lifetime - self._clock()
            found = self._remembered(record, Result.HIT, cache_status.hit(ttl))
            if found is not None:
                return found
        if record is None and known_only:
            raise _unknown(subject)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if self._is_usable(view, record) else UNASKED_SECONDS):
                key = (*view.key, subject, query)
                return await self._asking.run(key, lambda: self._ask(view, subject, query))
        except (TimeoutError, Unavailable, TooManyRequests, BadUpstream) as error:
            slow = Unavailable("upstream is slow") if isinstance(error, TimeoutError) else error
            if record is None or not self._is_usable(view, record):
                raise slow from error
            over = self._clock() - record.validated_at - self._manifests.tag_lifetime
            found = self._remembered(record, Result.STALE, cache_status.stale(over, slow.message))
            if found is None:
                raise slow from error
            return found

    async def by_fallback_tag(
        self, view: RepositoryView, tag: str, negotiation: str, *, head: bool, known_only: bool = False
    ) -> ManifestResult:
        """The manifest at a tag made from a digest; raises `ManifestUnknown` as `listed` does."""
        subject = subject_of_tag(tag)
        assert subject is not None
        record = self._record(view, subject, tag, negotiation)
        if record is not None and self._is_fresh(view, record):
            raise _unknown(subject)
        if known_only and record is None and not self._store.tags.get(view.host, view.repository, tag):
            raise _unknown(subject)
        since, asked_at = self._access.change_number(view.host, view.repository), self._clock()
        try:
            async with asyncio.timeout(UNASKED_SECONDS):
                return await self._manifests.by_tag(view, tag, negotiation, head=head)
        except TimeoutError as error:
            raise Unavailable("upstream is slow") from error
        except ManifestUnknown:
            await self._keep(view, subject, (tag, negotiation), ReferrersRecord(None, asked_at), since)
            raise

    async def forget(self, host: str, repository: str, reference: str, subject: Digest | None) -> None:
        """A manifest was pushed or deleted through this proxy, about `subject` by the registry's word (`OCI-Subject`).

        Where nothing tells which digest it refers to, all that is known of the repository's referrers is forgotten.
        """
        await self._writer.drop_referrers(host, repository, subject or subject_of_tag(reference))

    # -- what is known ----------------------------------------------------------------------------------------------

    def _record(self, view: RepositoryView, subject: Digest, *question: str) -> ReferrersRecord | None:
        return self._store.tags.referrers(view.host, view.repository, subject).get(_question(view, *question))

    def _is_fresh(self, view: RepositoryView, record: ReferrersRecord) -> bool:
        fresh = freshness(record, self._clock(), self._manifests.tag_lifetime) is Freshness.FRESH
        return fresh and self._access.can_read_repository(view.host, view.repository, view.authorization)

    def _is_usable(self, view: RepositoryView, record: ReferrersRecord | None) -> bool:
        """Whether it may be served although the upstream does not answer."""
        if record is None or not self._access.can_read_repository(
            view.host, view.repository, view.authorization, outage=True
        ):
            return False
        return may_serve_stale(record, self._clock(), self._manifests.tag_lifetime, self._manifests.max_stale)

    def _remembered(self, record: ReferrersRecord, result: Result, status: str) -> ReferrersResult | None:
        """What a record says; None when the body is not stored any more. Raises `ManifestUnknown` if it was a 404."""
        if record.digest is None:
            raise ManifestUnknown("the registry lists no referrers")
        manifest = self._store.manifest(record.digest)
        if manifest is None:
            return None
        return ReferrersResult(record.digest, manifest.body, record.filters, record.following, result, status)

    # -- asking -----------------------------------------------------------------------------------------------------

    async def _ask(self, view: RepositoryView, subject: Digest, query: str) -> ReferrersResult:
        """What the upstream says now. It proves nothing about who may read the repository: registries exist that list
        no referrers (200) of whatever they are asked about, and others that have no such API for anonymous readers."""
        asked = view.request_key("referrers", subject, query)
        since, asked_at = self._access.raise_remembered_error(view.host, view.repository, asked), self._clock()
        try:
            page = await view.upstream.get_referrers(view.repository, subject, query, view.authorization)
        except (ManifestUnknown, Unauthorized, Denied) as error:
            self._access.remember_error(view.host, view.repository, asked, error, since)
            if isinstance(error, ManifestUnknown):
                await self._keep(view, subject, ("query", query), ReferrersRecord(None, asked_at), since)
            raise
        digest, was_here, is_here = await self._take(view, page)
        record = ReferrersRecord(digest, asked_at, page.filters_applied, page.next_query)
        known = self._record(view, subject, "query", query)
        await self._keep(view, subject, ("query", query), record, since)
        if was_here and known is not None and known.digest == digest:
            result, status = Result.REVALIDATED, cache_status.validated()
        else:
            result, status = Result.MISS, cache_status.fetched(stored=is_here)
        return ReferrersResult(digest, page.body, page.filters_applied, page.next_query, result, status)

    async def _take(self, view: RepositoryView, page: ReferrersPage) -> tuple[Digest, bool, bool]:
        """Check and store a page, and that all it lists belongs to the repository; its digest, and whether it was
        stored before and is now."""
        try:
            children = parse_image_index(page.body)
        except ManifestInvalid as error:
            raise BadUpstream(f"upstream sent no list of referrers: {error.message}", error.detail) from error
        digest = Digest.of(page.body)
        if view.authorization is not None and not await self._writer.record_source(
            view.host, view.repository, digest, len(page.body), private=True
        ):
            return digest, False, False
        here = self._store.has(digest)
        stored = here or await self._writer.put_manifest(digest, ManifestRecord(OCI_INDEX, page.body))
        links: dict[Digest, int | None] = {child.digest: child.size for child in children}
        links[digest] = len(page.body)
        await self._writer.put_links(view.host, view.repository, links, confirmed=False)
        return digest, here, stored

    async def _keep(
        self, view: RepositoryView, subject: Digest, question: tuple[str, str], record: ReferrersRecord, since: int
    ) -> None:
        """Remember an answer, unless something was pushed or deleted `since` the question was put.

        Only of digests that are known to be the repository's: clients can think up others without end. A 404 only of
        the public view: some registries answer so whoever may not look.
        """
        if since != self._access.change_number(view.host, view.repository):
            return
        if record.digest is None and view.authorization is not None:
            return
        if self._store.links.get(view.host, view.repository, subject) is not None:
            await self._writer.put_referrers(view.host, view.repository, subject, _question(view, *question), record)


def _question(view: RepositoryView, *parts: str) -> str:
    """A short key for a question, whose words are the client's.

    Readers' answers are kept apart from the public's: an answer about referrers does not show who may read it, and the
    registry may tell readers more.
    """
    who = () if view.authorization is None else ("reader",)
    return hashlib.sha256("\n".join((*who, *parts)).encode(errors="replace")).hexdigest()[:32]


def _unknown(subject: Digest) -> ManifestUnknown:
    return ManifestUnknown("nothing is known to refer to that digest", {"digest": str(subject)})
