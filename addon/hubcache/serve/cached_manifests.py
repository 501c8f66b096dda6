"""Looks up manifests by tag and by digest.

They come from the store while they are fresh, or stale while the upstream does not answer; else from the upstream.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from ..decide.policy import Freshness, freshness, may_serve_stale
from ..decide.records import TagRecord
from ..oci.digest import Digest
from ..oci.errors import BadUpstream, TooManyRequests, Unavailable
from ..store.store import Store
from ..transfer.coalesce import Coalescer
from . import cache_status
from .access import Access
from .manifest_validation import ManifestValidation
from .messages import Result
from .repository_view import RepositoryView
from .stored_manifests import ManifestResult, StoredManifests

PATIENCE_SECONDS = 2.0
"""A client that could be served a stale copy waits this long for the upstream, not for the upstream's time-outs."""

MAX_REVALIDATIONS = 64
"""Validations in the background at the same time; beyond them, clients wait for their own."""

type _RequestKey = tuple[str, str, str, str, str, bool]


class CachedManifests:
    """Looks manifests up. Lifetimes are in seconds; `clock` returns seconds since the epoch.

    `while_revalidate` is how long after its lifetime a tag is served while it is validated in the background,
    `max_stale` how long it is served while the upstream does not answer.
    """

    def __init__(
        self,
        store: Store,
        access: Access,
        stored: StoredManifests,
        validation: ManifestValidation,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.tag_lifetime = 60.0
        self.max_stale = 0.0
        self.while_revalidate = 0.0
        self._store = store
        self._access = access
        self._stored = stored
        self._validation = validation
        self._clock = clock
        self._fetches = Coalescer[_RequestKey, ManifestResult]()
        self._revalidations: set[asyncio.Task[ManifestResult]] = set()

    async def by_digest(self, view: RepositoryView, digest: Digest, *, head: bool) -> ManifestResult:
        """Return a manifest by digest; it does not become stale, but must be in a repository that the view may read."""
        stored = self._stored.find(view.host, digest, Result.HIT, cache_status.hit())
        if stored is not None and self._access.can_read(view.host, view.repository, digest, view.authorization):
            return stored
        key = (*view.key, str(digest), "", head)
        try:
            has_stale = self._stale_by_digest(view, digest, "upstream is slow") is not None
            return await self._fetch(
                key, lambda: self._validation.fetch_by_digest(view, digest, head=head), has_stale=has_stale
            )
        except (Unavailable, TooManyRequests, BadUpstream) as error:
            stale = self._stale_by_digest(view, digest, error.message)
            if stale is None:
                raise
            return stale

    def _stale_by_digest(self, view: RepositoryView, digest: Digest, reason: str) -> ManifestResult | None:
        """Return the stored manifest that may be served while the upstream does not answer."""
        if not self._access.can_read(view.host, view.repository, digest, view.authorization, outage=True):
            return None
        return self._stored.find(view.host, digest, Result.STALE, cache_status.stale(0, reason))

    async def by_tag(self, view: RepositoryView, tag: str, negotiation: str, *, head: bool) -> ManifestResult:
        """Return a manifest by tag, as the upstream answers this `Accept` negotiation."""
        record = self._store.tags.get(view.host, view.repository, tag).get(negotiation)
        fresh = self._fresh(view, record, head)
        if fresh is not None:
            return fresh
        revalidating = self._while_revalidating(view, tag, negotiation, record, head)
        if revalidating is not None:
            return revalidating
        try:
            return await self._fetch(
                (*view.key, tag, negotiation, head),
                lambda: self._validation.validate(view, tag, negotiation, head=head),
                has_stale=self._stale(view, record, head, "upstream is slow") is not None,
            )
        except (Unavailable, TooManyRequests, BadUpstream) as error:
            stale = self._stale(view, record, head, error.message)
            if stale is None:
                raise
            return stale

    def _fresh(self, view: RepositoryView, record: TagRecord | None, head: bool) -> ManifestResult | None:
        """Return what a tag refers to, within its lifetime (RFC 9111 section 4.2)."""
        now = self._clock()
        if record is None or freshness(record, now, self.tag_lifetime) is not Freshness.FRESH:
            return None
        if not self._access.can_read_repository(view.host, view.repository, view.authorization):
            return None
        ttl = record.validated_at + self.tag_lifetime - now
        return self._stored.of_tag(view.host, record, Result.HIT, cache_status.hit(ttl), head=head)

    def _while_revalidating(
        self, view: RepositoryView, tag: str, negotiation: str, record: TagRecord | None, head: bool
    ) -> ManifestResult | None:
        """Return what a tag refers to shortly after its lifetime, and validate it in the background.

        That is stale-while-revalidate (RFC 5861 section 3). None where the client has to wait for the validation. A
        client with credentials of its own always waits, since the registry decides whether it may still read the
        repository.
        """
        if record is None or view.authorization is not None:
            return None
        over = self._clock() - record.validated_at - self.tag_lifetime
        if not 0 <= over < self.while_revalidate:
            return None
        if not self._access.can_read_repository(view.host, view.repository, None):
            return None
        status = cache_status.stale(over, "revalidating")
        found = self._stored.of_tag(view.host, record, Result.STALE, status, head=head)
        if found is None:
            return None
        head_is_enough = found.body is None
        key = (*view.key, tag, negotiation, head_is_enough)
        if not self._fetches.is_running(key):
            if len(self._revalidations) >= MAX_REVALIDATIONS:
                return None
            task = self._fetches.start(
                key, lambda: self._validation.validate(view, tag, negotiation, head=head_is_enough)
            )
            self._revalidations.add(task)
            task.add_done_callback(self._revalidations.discard)
        return found

    def _stale(self, view: RepositoryView, record: TagRecord | None, head: bool, reason: str) -> ManifestResult | None:
        """Return what a tag refers to while the upstream does not answer (RFC 5861 section 4, stale-if-error)."""
        now = self._clock()
        if record is None or not may_serve_stale(record, now, self.tag_lifetime, self.max_stale):
            return None
        if not self._access.can_read_repository(view.host, view.repository, view.authorization, outage=True):
            return None
        over = now - record.validated_at - self.tag_lifetime
        return self._stored.of_tag(view.host, record, Result.STALE, cache_status.stale(over, reason), head=head)

    async def _fetch(
        self, key: _RequestKey, work: Callable[[], Coroutine[Any, Any, ManifestResult]], *, has_stale: bool
    ) -> ManifestResult:
        """Run work once for equal requests.

        A client that can be served a stale copy waits for `PATIENCE_SECONDS` only; the work goes on without it.
        """
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if has_stale else None):
                return await self._fetches.run(key, work)
        except TimeoutError as error:
            raise Unavailable("upstream is slow") from error
