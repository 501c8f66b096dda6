"""Asks the upstream about manifests, and stores what it answers.

A GET of a manifest counts against the rate limit as a pull, a HEAD does not: so a HEAD is sent where it can be enough.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

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
)
from ..oci.manifest import parse_manifest
from ..oci.media import COMMON_TYPES
from ..store.store import Store
from ..transfer.upstream_response import FetchedManifest
from . import cache_status
from .access import Access
from .best_effort import BestEffortWriter
from .messages import Result
from .repository_view import RepositoryView
from .stored_manifests import ManifestResult, StoredManifests

_ANY_TYPE = ", ".join((*COMMON_TYPES, "*/*"))
_REFUSALS = (Unauthorized, Denied, ManifestUnknown, TooManyRequests)
"""Errors after which a download is tried with other credentials."""

type _Answer = tuple[ManifestResult, float]
"""A manifest, and when the registry answered with it, in seconds since the epoch."""


class ManifestValidation:
    """Validates tags and fetches manifests. `clock` returns seconds since the epoch, `tag_lifetime` is in seconds."""

    def __init__(
        self,
        store: Store,
        writer: BestEffortWriter,
        access: Access,
        stored: StoredManifests,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.tag_lifetime = 60.0
        self._store = store
        self._writer = writer
        self._access = access
        self._stored = stored
        self._clock = clock

    async def fetch_by_digest(self, view: RepositoryView, digest: Digest, *, head: bool) -> ManifestResult:
        """Return a manifest that the upstream confirms to be in the repository; its body may come from the store."""
        change_number = self._access.raise_remembered_error(
            view.host, view.repository, view.request_key(str(digest), "")
        )
        try:
            if self._stored.body(view.host, digest) is not None or head or view.needs_anonymous_check:
                found = await self._digest_by_head(view, digest, head=head)
                if found is not None:
                    return found
            found, _ = await self._download(view, digest, _ANY_TYPE)
            return found
        except (ManifestUnknown, Unauthorized, Denied) as error:
            await self._record_refused(view, str(digest), error, change_number)
            if view.authorization is None:  # last: content that becomes private is found by its links
                await self._writer.unlink(view.host, view.repository, digest)
            raise

    async def _digest_by_head(self, view: RepositoryView, digest: Digest, *, head: bool) -> ManifestResult | None:
        """Return the manifest if a HEAD by digest and the store suffice; None when it has to be downloaded."""
        requested_at = self._clock()
        described = await view.upstream.head_manifest(view.repository, digest, _ANY_TYPE, view.authorization)
        await self._record_accepted(view, described.answered_at, requested_at)
        body = self._stored.body(view.host, digest)  # read only now, as its registry may have changed
        if body is not None:
            await self._writer.put_links(view.host, view.repository, {digest: len(body)})
            media_type = await self._stored.media_types.learn(view.host, digest, body, described.media_type)
            status = cache_status.validated()
            return ManifestResult(digest, media_type, len(body), body, Result.REVALIDATED, status)
        if head and described.size is not None:
            status = cache_status.fetched(stored=False)
            return ManifestResult(digest, described.media_type, described.size, None, Result.MISS, status)
        return None

    async def validate(self, view: RepositoryView, tag: str, negotiation: str, *, head: bool) -> ManifestResult:
        """Ask the upstream which manifest a tag refers to, and return it (RFC 9111 section 4.3)."""
        change_number = self._access.raise_remembered_error(
            view.host, view.repository, view.request_key(tag, negotiation)
        )
        requested_at = self._clock()
        tag_change_number = self._writer.change_number(view.host, view.repository, tag)
        known = self._store.tags.get(view.host, view.repository, tag).get(negotiation)
        try:
            answer = None
            if head or known is not None or view.needs_anonymous_check:
                answer = await self._tag_by_head(view, tag, negotiation, known, head=head)
            found, answered_at = answer or await self._download(view, tag, negotiation)
        except (ManifestUnknown, Unauthorized, Denied) as error:
            if known is not None and view.authorization is None:
                await self._writer.drop_tag(view.host, view.repository, tag)
            await self._record_refused(view, tag, error, change_number, negotiation)
            raise
        record = TagRecord(found.digest, found.media_type, found.size, min(requested_at, answered_at))
        await self._writer.put_tag(view.host, view.repository, tag, negotiation, record, tag_change_number)
        over = requested_at - answered_at - self.tag_lifetime
        if over > 0:  # another cache's answer, since the registry does not answer
            return replace(found, result=Result.STALE, cache_status=cache_status.stale(over, "upstream is down"))
        return found

    async def _tag_by_head(
        self, view: RepositoryView, tag: str, negotiation: str, known: TagRecord | None, *, head: bool
    ) -> _Answer | None:
        """Return the tag's manifest if a HEAD and the store suffice; None when the answer lacks digest or size."""
        not_before = -math.inf if known is None else known.validated_at
        requested_at = self._clock()
        try:
            described = await view.upstream.head_manifest(
                view.repository, tag, negotiation, view.authorization, not_before=not_before
            )
        except ManifestUnknown:
            if not self._access.can_read_repository(view.host, view.repository, None):
                raise
            # A HEAD has no body to say whether the tag is missing or the repository. A GET that fails does not count as
            # a pull.
            fetched = await view.upstream.get_manifest(
                view.repository, tag, negotiation, view.authorization, is_public=view.authorization is None
            )
            return await self._store_manifest(view, fetched), fetched.answered_at
        await self._record_accepted(view, described.answered_at, requested_at)
        if described.digest is None or described.size is None:
            return None
        record = TagRecord(described.digest, described.media_type, described.size, described.answered_at)
        if known is not None and known.digest == described.digest:
            result, status = Result.REVALIDATED, cache_status.validated()
        else:
            result, status = Result.MISS, cache_status.fetched(stored=False)
        found = self._stored.of_tag(view.host, record, result, status, head=head)
        if found is None:
            found, _ = await self._download(view, described.digest, negotiation)
        else:
            await self._writer.put_links(view.host, view.repository, {described.digest: described.size})
        return found, described.answered_at

    async def check_tag(self, view: RepositoryView, tag: str, negotiation: str, known: TagRecord) -> Digest | None:
        """Return the digest that a tag refers to upstream; None when the answer to a HEAD lacks it.

        A tag that did not move counts as validated. The new digest of a tag that moved is not stored.
        """
        change_number = self._access.raise_remembered_error(
            view.host, view.repository, view.request_key(tag, negotiation)
        )
        requested_at = self._clock()
        tag_change_number = self._writer.change_number(view.host, view.repository, tag)
        try:
            # An answer of some other cache is of use only if the lifetime that begins with it ends later.
            halfway = (known.validated_at + requested_at) / 2
            described = await view.upstream.head_manifest(
                view.repository, tag, negotiation, view.authorization, not_before=halfway
            )
        except (Unauthorized, Denied) as error:
            await self._writer.drop_tag(view.host, view.repository, tag)
            await self._record_refused(view, tag, error, change_number, negotiation)
            raise
        await self._record_accepted(view, described.answered_at, requested_at)
        if described.digest == known.digest:
            validated = replace(known, validated_at=min(requested_at, described.answered_at))
            await self._writer.put_tag(view.host, view.repository, tag, negotiation, validated, tag_change_number)
        return described.digest

    async def extend_freshness(self, view: RepositoryView, tag: str, negotiation: str, record: TagRecord) -> None:
        """Keep the tag's old manifest for another lifetime, while the one that it moved to is being fetched."""
        change_number = self._writer.change_number(view.host, view.repository, tag)
        extended = replace(record, validated_at=self._clock())
        await self._writer.put_tag(view.host, view.repository, tag, negotiation, extended, change_number)

    async def _download(self, view: RepositoryView, reference: str | Digest, accept: str) -> _Answer:
        """GET a manifest and store it.

        A digest may be read with other credentials than the view's: the caller has checked, by an anonymous request
        immediately before, that the public may read it. A tag is read with the view's credentials, since it may refer
        to another manifest for an account.
        """

        async def attempt(authorization: str | None) -> _Answer:
            requested_at = self._clock()
            fetched = await view.upstream.get_manifest(
                view.repository, reference, accept, authorization, is_public=view.authorization is None
            )
            found = await self._store_manifest(view, fetched)
            if authorization == view.authorization:
                await self._record_accepted(view, fetched.answered_at, requested_at)
            return found, fetched.answered_at

        if isinstance(reference, Digest):
            return await view.try_credentials(attempt, _REFUSALS)
        return await attempt(view.authorization)

    async def _store_manifest(self, view: RepositoryView, fetched: FetchedManifest) -> ManifestResult:
        """Check and store a manifest, and that all content it refers to belongs to the repository."""
        try:
            children = parse_manifest(fetched.body)
        except ManifestInvalid as error:
            raise BadUpstream(f"upstream sent no manifest: {error.message}", error.detail) from error
        digest, size = fetched.digest, len(fetched.body)
        links: dict[Digest, int | None] = {child.digest: child.size for child in children}
        private = view.authorization is not None
        recorded = await self._writer.record_source(view.host, view.repository, digest, size, private=private)
        if private and not recorded:  # stored without a mark, it could be served to the public
            status = cache_status.fetched(stored=False)
            return ManifestResult(digest, fetched.media_type, size, fetched.body, Result.MISS, status)
        media_type = await self._stored.media_types.learn(view.host, digest, fetched.body, fetched.media_type)
        stored = await self._writer.put_manifest(digest, ManifestRecord(media_type, fetched.body))
        await self._writer.put_links(view.host, view.repository, links, confirmed=False)
        return ManifestResult(digest, media_type, size, fetched.body, Result.MISS, cache_status.fetched(stored=stored))

    async def _record_accepted(self, view: RepositoryView, answered_at: float, requested_at: float) -> None:
        """Record that the view may read the repository.

        Raises `Denied` for an answer that another cache received before this request, if the registry refused this
        cache after it.
        """
        counts = await self._access.record_accepted(view.host, view.repository, view.authorization, answered_at)
        if not counts and answered_at < requested_at:
            raise Denied("the registry has refused a later read", {"repository": view.repository})

    async def _record_refused(
        self, view: RepositoryView, reference: str, error: RegistryError, change_number: int, negotiation: str = ""
    ) -> None:
        """Record an error answer, for this view."""
        if not isinstance(error, ManifestUnknown):
            await self._access.record_refused(view.host, view.repository, view.authorization)
        elif view.authorization is None:
            await self._access.expire_visibility(view.host, view.repository, error)
        request_key = view.request_key(reference, negotiation)
        self._access.remember_error(view.host, view.repository, request_key, error, change_number)

    async def forget(self, host: str, repository: str, reference: str) -> None:
        """Forget a tag or a manifest that was pushed or deleted through this proxy."""
        if ":" in reference:
            await self._writer.forget_manifest(host, repository, Digest.parse(reference))
        else:
            await self._writer.drop_tag(host, repository, reference)
