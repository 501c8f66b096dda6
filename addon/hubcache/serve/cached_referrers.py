"""Referrers of a manifest (signatures, attestations, SBOMs) as the registry lists them, with the lifetimes of tags.

Clients request them beside an image: by the referrers API and, where that is missing, by a tag made from the digest
(distribution spec, "Listing Referrers" and "Backwards Compatibility"). The usual answer is 404, after which clients
continue, so a 404 is remembered as well.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
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
from ..oci.json_reader import read_json
from ..oci.manifest import MAX_MANIFEST, parse_image_index
from ..oci.media import OCI_INDEX
from ..oci.reference import subject_of_tag
from ..store.store import Store
from ..transfer.coalesce import Coalescer
from ..transfer.referrers_page import ReferrersPage
from . import cache_status
from .access import Access
from .best_effort import BestEffortWriter
from .cached_manifests import PATIENCE_SECONDS, CachedManifests
from .messages import Result
from .repository_view import RepositoryView
from .stored_manifests import ManifestResult

WAIT_SECONDS = 10.0
"""A client waits this long for the upstream where no answer is known; a pull goes on without one."""


@dataclass(frozen=True, slots=True)
class ReferrersResult:
    """A page to answer with: an image index, `OCI-Filters-Applied`, and the query of the next page ("" if none)."""

    digest: Digest
    body: bytes
    filters_applied: str
    next_query: str
    result: Result
    cache_status: str


class CachedReferrers:
    """Looks referrers up. `clock` returns seconds since the epoch."""

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
        self._fetches = Coalescer[tuple[str, ...], ReferrersResult]()

    async def by_subject(
        self, view: RepositoryView, subject: Digest, query: str, *, known_only: bool = False
    ) -> ReferrersResult:
        """Return a page of the referrers API.

        Raises `ManifestUnknown` if the registry answers 404 and, with `known_only`, if no answer is remembered.
        """
        record = self._record(view, subject, "query", query)
        if record is not None and self._is_fresh(view, record):
            ttl = record.validated_at + self._manifests.tag_lifetime - self._clock()
            found = self._remembered(record, Result.HIT, cache_status.hit(ttl))
            if found is not None:
                return found
        if record is None and known_only:
            raise _unknown(subject)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if self._may_serve_stale(view, record) else WAIT_SECONDS):
                key = (*view.key, subject, query)
                return await self._fetches.run(key, lambda: self._fetch(view, subject, query))
        except (TimeoutError, Unavailable, TooManyRequests, BadUpstream) as error:
            failure = Unavailable("upstream is slow") if isinstance(error, TimeoutError) else error
            found = self._stale(view, record, failure.message)
            if found is None:
                raise failure from error
            return found

    async def by_fallback_tag(
        self, view: RepositoryView, tag: str, negotiation: str, *, head: bool, known_only: bool = False
    ) -> ManifestResult:
        """Return the manifest at a tag made from a digest; raises `ManifestUnknown` as `by_subject` does."""
        subject = subject_of_tag(tag)
        assert subject is not None
        record = self._record(view, subject, tag, negotiation)
        if record is not None and self._is_fresh(view, record):
            raise _unknown(subject)
        if known_only and record is None and not self._store.tags.get(view.host, view.repository, tag):
            raise _unknown(subject)
        change_number, requested_at = self._access.change_number(view.host, view.repository), self._clock()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await self._manifests.by_tag(view, tag, negotiation, head=head)
        except TimeoutError as error:
            raise Unavailable("upstream is slow") from error
        except ManifestUnknown:
            missing = ReferrersRecord(None, requested_at)
            await self._remember(view, subject, (tag, negotiation), missing, change_number)
            raise

    async def forget(self, host: str, repository: str, reference: str, subject: Digest | None) -> None:
        """Forget the referrers that a push or a delete of a manifest changed; `subject` is its `OCI-Subject`.

        Where the subject is not known, the referrers of all manifests of the repository are forgotten.
        """
        await self._writer.drop_referrers(host, repository, subject or subject_of_tag(reference))

    async def add_listed(
        self, view: RepositoryView, subject: Digest, listed: Mapping[Digest, dict[str, object]]
    ) -> None:
        """Remember that the registry lists these referrers of a digest, with their descriptors, besides those that it
        is known to list: an import contains them."""
        record = self._record(view, subject, "query", "")
        known = None if record is None or record.digest is None else self._store.manifest(record.digest)
        before = read_json(known.body, MAX_MANIFEST) if known is not None else None
        entries = before.get("manifests") if isinstance(before, dict) else None
        kept = [one for one in entries or () if isinstance(one, dict) and one.get("digest") not in listed]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*kept, *listed.values()]}
        page = ReferrersPage(json.dumps(document).encode(), "", "")
        digest, _, _ = await self._store_page(view, page)
        change_number = self._access.change_number(view.host, view.repository)
        await self._remember(view, subject, ("query", ""), ReferrersRecord(digest, self._clock()), change_number)

    # -- remembered answers -------------------------------------------------------------------------------------------

    def _record(self, view: RepositoryView, subject: Digest, *request: str) -> ReferrersRecord | None:
        return self._store.tags.referrers(view.host, view.repository, subject).get(_request_key(view, *request))

    def _is_fresh(self, view: RepositoryView, record: ReferrersRecord) -> bool:
        fresh = freshness(record, self._clock(), self._manifests.tag_lifetime) is Freshness.FRESH
        return fresh and self._access.can_read_repository(view.host, view.repository, view.authorization)

    def _may_serve_stale(self, view: RepositoryView, record: ReferrersRecord | None) -> bool:
        """Whether a remembered answer may be served while the upstream does not answer."""
        if record is None:
            return False
        if not self._access.can_read_repository(view.host, view.repository, view.authorization, outage=True):
            return False
        return may_serve_stale(record, self._clock(), self._manifests.tag_lifetime, self._manifests.max_stale)

    def _stale(self, view: RepositoryView, record: ReferrersRecord | None, reason: str) -> ReferrersResult | None:
        if record is None or not self._may_serve_stale(view, record):
            return None
        over = self._clock() - record.validated_at - self._manifests.tag_lifetime
        return self._remembered(record, Result.STALE, cache_status.stale(over, reason))

    def _remembered(self, record: ReferrersRecord, result: Result, status: str) -> ReferrersResult | None:
        """Return a remembered page; None when its body is no longer stored. Raises `ManifestUnknown` for a 404."""
        if record.digest is None:
            raise ManifestUnknown("the registry lists no referrers")
        manifest = self._store.manifest(record.digest)
        if manifest is None:
            return None
        return ReferrersResult(record.digest, manifest.body, record.filters, record.following, result, status)

    # -- requests to the upstream -------------------------------------------------------------------------------------

    async def _fetch(self, view: RepositoryView, subject: Digest, query: str) -> ReferrersResult:
        """Request a page and remember the answer.

        The answer does not show who may read the repository: some registries list no referrers (200) for any
        repository, others have no such API for anonymous clients.
        """
        error_key = view.request_key("referrers", subject, query)
        change_number = self._access.raise_remembered_error(view.host, view.repository, error_key)
        requested_at = self._clock()
        try:
            page = await view.upstream.get_referrers(view.repository, subject, query, view.authorization)
        except (ManifestUnknown, Unauthorized, Denied) as error:
            self._access.remember_error(view.host, view.repository, error_key, error, change_number)
            if isinstance(error, ManifestUnknown):
                missing = ReferrersRecord(None, requested_at)
                await self._remember(view, subject, ("query", query), missing, change_number)
            raise
        digest, was_stored, is_stored = await self._store_page(view, page)
        record = ReferrersRecord(digest, requested_at, page.filters_applied, page.next_query)
        known = self._record(view, subject, "query", query)
        await self._remember(view, subject, ("query", query), record, change_number)
        if was_stored and known is not None and known.digest == digest:
            result, status = Result.REVALIDATED, cache_status.validated()
        else:
            result, status = Result.MISS, cache_status.fetched(stored=is_stored)
        return ReferrersResult(digest, page.body, page.filters_applied, page.next_query, result, status)

    async def _store_page(self, view: RepositoryView, page: ReferrersPage) -> tuple[Digest, bool, bool]:
        """Check and store a page, and record that the manifests that it lists belong to the repository.

        Returns its digest, whether it was stored before, and whether it is stored now.
        """
        try:
            children = parse_image_index(page.body)
        except ManifestInvalid as error:
            raise BadUpstream(f"upstream sent no list of referrers: {error.message}", error.detail) from error
        digest = Digest.of(page.body)
        if view.authorization is not None and not await self._writer.record_source(
            view.host, view.repository, digest, len(page.body), private=True
        ):
            return digest, False, False
        was_stored = self._store.has(digest)
        is_stored = was_stored or await self._writer.put_manifest(digest, ManifestRecord(OCI_INDEX, page.body))
        links: dict[Digest, int | None] = {child.digest: child.size for child in children}
        links[digest] = len(page.body)
        await self._writer.put_links(view.host, view.repository, links, confirmed=False)
        return digest, was_stored, is_stored

    async def _remember(
        self,
        view: RepositoryView,
        subject: Digest,
        request: tuple[str, str],
        record: ReferrersRecord,
        change_number: int,
    ) -> None:
        """Remember an answer, unless something was pushed or deleted since `change_number`.

        Answers are remembered only for digests that are known to belong to the repository, since clients can invent any
        number of others. A 404 is remembered only for the public view: some registries answer it to clients that may
        not read the repository.
        """
        if change_number != self._access.change_number(view.host, view.repository):
            return
        if record.digest is None and view.authorization is not None:
            return
        if self._store.links.get(view.host, view.repository, subject) is not None:
            request_key = _request_key(view, *request)
            await self._writer.put_referrers(view.host, view.repository, subject, request_key, record)


def _request_key(view: RepositoryView, *parts: str) -> str:
    """Return a short key for a request, parts of which the client wrote.

    Answers to credentials are kept apart from public ones: an answer about referrers does not show who may read it, and
    the registry may list more to a client with access.
    """
    prefix = () if view.authorization is None else ("reader",)
    return hashlib.sha256("\n".join((*prefix, *parts)).encode(errors="replace")).hexdigest()[:32]


def _unknown(subject: Digest) -> ManifestUnknown:
    return ManifestUnknown("nothing is known to refer to that digest", {"digest": str(subject)})
