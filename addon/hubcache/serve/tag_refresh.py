"""Validates tags that are often requested before their lifetime ends, so that no client waits for the registry.

`decide/watched_tag` and `decide/refresh_schedule` decide which tags are checked, when, and in which order;
`decide/budget` limits the requests. When a tag moved, the new manifests and the layers of the platforms that clients
pull are fetched first; until they are stored, the tag refers to the previous image.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ..decide.budget import Budget
from ..decide.records import TagRecord
from ..decide.refresh_schedule import Schedule
from ..decide.watched_tag import OFTEN, WatchedTag
from ..oci.digest import Digest
from ..oci.errors import HubcacheError
from ..store.store import Store
from ..transfer.upstream import Upstream
from .best_effort import BestEffortWriter
from .cached_manifests import CachedManifests
from .lru_map import LRUMap
from .manifest_validation import ManifestValidation
from .messages import Result
from .prefetch import Prefetch
from .repository_view import RepositoryView
from .stored_manifests import ManifestResult
from .tag_moves import READS, TagMoves

logger = logging.getLogger("hubcache")

MAX_TAGS = 200_000
"""Tags that are watched, each some 700 bytes; beyond them, the one that was not requested for longest is dropped."""

MAX_NEGOTIATION = 512
"""Characters of the `Accept` of a watched tag. Clients write it and it is kept; the four common types have some 240."""

TICK_SECONDS = 5.0
"""How often `tick` is called."""

_EARLY = 0.1
"""Part of a tag's lifetime, but at least two ticks, before its end by which the tag is validated at the latest; tags
are spread over as much again."""

_CONCURRENT_CHECKS = 4
"""Checks at one registry that run at the same time."""

_SLICE = 50
"""Entries of the schedule that are handled at once, which takes a millisecond."""

_NEXT_SLICE_SECONDS = 0.01
_SET_BACK_SECONDS = 60.0
_LONGEST_FETCH_SECONDS = 900.0

type _Key = tuple[str, str, str, str]


class TagRefresh:
    """Watches and validates tags.

    `may_spend` returns whether a host's rate limit leaves requests for background work. `apply` sets the request rate
    for each registry (per second) and the registries by host. `clock` returns seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        writer: BestEffortWriter,
        manifests: CachedManifests,
        validation: ManifestValidation,
        prefetch: Prefetch,
        may_spend: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.enabled = True
        self.upstreams: Mapping[str, Upstream] = {}
        self._store = store
        self._manifests = manifests
        self._validation = validation
        self._prefetch = prefetch
        self._may_spend = may_spend
        self._clock = clock
        self._schedule = Schedule()
        self._watched = LRUMap[_Key, WatchedTag](MAX_TAGS, self._drop)
        self._budgets: dict[str, Budget] = {}
        self._running = Counter[str]()
        """Checks that are running, by host."""
        self._moves = TagMoves(store, writer)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticked_at = clock()
        self._next_slice: asyncio.TimerHandle | None = None

    def apply(self, rate: float, upstreams: Mapping[str, Upstream]) -> None:
        """Change the rate and the registries."""
        now = self._clock()
        self.upstreams = upstreams
        for host in upstreams:
            self._budgets.setdefault(host, Budget(rate, now))
        for budget in self._budgets.values():
            budget.change(rate, now)
        for host in [host for host in self._budgets if host not in upstreams and not self._running[host]]:
            del self._budgets[host], self._running[host]

    def _drop(self, _: _Key, watched: WatchedTag) -> None:
        watched.is_dropped = True
        self._schedule.drop(watched)

    # -- requests of clients --------------------------------------------------------------------------------------

    def record_request(self, view: RepositoryView, tag: str, negotiation: str, found: ManifestResult) -> None:
        """Record that a client requested a public tag and was answered with `found`."""
        is_validated = found.result in (Result.REVALIDATED, Result.MISS)
        self._record((view.host, view.repository, tag, negotiation), found.digest if is_validated else None)

    def record_hit(self, host: str, repository: str, tag: str, negotiation: str) -> None:
        """Record that a client requested a public tag and was answered from the store."""
        self._record((host, repository, tag, negotiation), None)

    def _record(self, key: _Key, validated: Digest | None) -> None:
        """Record a request for a tag; `validated` is the digest that the registry returned for it, if it was asked."""
        *_, negotiation = key
        lifetime = self._manifests.tag_lifetime
        if not self.enabled or len(negotiation) > MAX_NEGOTIATION:
            return
        now = self._clock()
        watched = self._watched.get(key)
        if watched is None:
            # The time of the last validation is not known until the record is read: assume the mean.
            watched = self._watched[key] = WatchedTag(*key, now, now, validated_at=now - lifetime / 2)
        watched.count_request(now, lifetime)
        if validated is not None:
            self._observe(watched, validated, now)
        if watched.daily_requests >= OFTEN:
            self._moves.request(watched)
        if watched.requests >= 2 * watched.scheduled_requests or not self._schedule.has(watched):
            self._place(watched, now)

    def _observe(self, watched: WatchedTag, digest: Digest | None, at: float) -> None:
        """Record which digest the registry returned for a tag."""
        before = watched.changes
        watched.record_validation(digest, at)
        if watched.changes is not before:
            self._moves.changed(watched)

    # -- the schedule ---------------------------------------------------------------------------------------------

    def _due(self, watched: WatchedTag, now: float) -> float | None:
        lifetime = self._manifests.tag_lifetime
        lead = min(max(lifetime * _EARLY, 2 * TICK_SECONDS), lifetime / 3)
        return watched.next_validation(now, lifetime, lead)

    def _place(self, watched: WatchedTag, now: float, not_before: float = 0.0) -> None:
        """Schedule the next check of a tag, or none."""
        due = None if watched.is_validating or watched.is_dropped else self._due(watched, now)
        if due is None:
            self._schedule.drop(watched)
        elif len(self._schedule) < 4 * MAX_TAGS:  # outdated entries stay for a while
            watched.scheduled_requests = max(watched.requests, OFTEN)
            self._schedule.put(watched, max(due, not_before))

    def tick(self) -> None:
        """Start checks that are due; call it every `TICK_SECONDS`. Large amounts are handled in slices."""
        if not self.enabled:
            return
        now, before = self._clock(), self._ticked_at
        self._ticked_at = now
        if now < before - _SET_BACK_SECONDS:
            self._schedule.clear()  # the clock was set back: else nothing would be due for long
        for watched in self._moves.read_some():
            if watched.changes is not None:
                self._place(watched, now)
        if self._moves.has_unwritten:
            self._spawn(self._moves.write_some())
        self._schedule.retain(self.upstreams)
        more = self._schedule.collect_due(now, self._manifests.tag_lifetime, _SLICE)
        for host in self.upstreams:
            more = self._start_checks(host, len(self.upstreams)) or more
        if more and self._next_slice is None:
            self._next_slice = asyncio.get_running_loop().call_later(_NEXT_SLICE_SECONDS, self._handle_next_slice)

    def _handle_next_slice(self) -> None:
        self._next_slice = None
        self.tick()

    def _start_checks(self, host: str, hosts: int) -> bool:
        """Start the checks at one of `hosts` registries that are allowed now; return whether there may be more.

        A 429 to any manifest request pauses checks until the end of the pause, which the upstream object remembers.
        """
        upstream, now = self.upstreams[host], self._clock()
        if not upstream.is_reachable or upstream.is_rate_limited("manifest", ""):
            return False
        reads = 0
        for _ in range(-(-_SLICE // hosts)):
            is_full = self._running[host] >= _CONCURRENT_CHECKS
            if is_full or self._budgets[host].wait(now) > 0 or not self._schedule.due(host):
                return False
            watched = self._schedule.pop(host)
            if watched is None or not self._is_still_due(watched, now):
                continue
            reads += 1
            record = self._read(watched)
            if record is not None and self._is_still_due(watched, now) and self._budgets[host].spend(now):
                watched.is_validating = True
                self._running[host] += 1
                self._spawn(self._check(watched, RepositoryView(upstream, watched.repository), record))
            if reads >= READS / hosts:
                return False
        return True

    def _is_still_due(self, watched: WatchedTag, now: float) -> bool:
        """Whether a tag is due according to its present record; one that is due later is scheduled again."""
        due = None if watched.is_dropped else self._due(watched, now)
        if due is None or due <= now:
            return due is not None
        self._place(watched, now)
        return False

    def _read(self, watched: WatchedTag) -> TagRecord | None:
        """Return the stored record of a tag, which a client's request may have validated meanwhile."""
        self._moves.read(watched)
        record = self._store.tags.get(watched.host, watched.repository, watched.tag).get(watched.negotiation)
        if record is not None:
            # While the image that a tag moved to is being fetched, the stored digest is older than the known one.
            watched.digest = watched.digest or record.digest
            watched.validated_at = record.validated_at
        return record

    # -- a check --------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self, watched: WatchedTag, view: RepositoryView, record: TagRecord) -> None:
        started_at = self._clock()
        watched.unused_validations += 1
        try:
            async with asyncio.timeout(_LONGEST_FETCH_SECONDS):
                await self._check_or_raise(watched, view, record)
        except (HubcacheError, TimeoutError) as error:
            logger.info("hubcache: %s:%s cannot be refreshed: %s", watched.repository, watched.tag, error)
        finally:
            watched.is_validating = False
            self._running[watched.host] -= 1
        # Without the pause a check that fails, or whose tag is gone, would be repeated at once.
        self._place(watched, self._clock(), not_before=started_at + self._manifests.tag_lifetime / 2)
        self.tick()

    async def _check_or_raise(self, watched: WatchedTag, view: RepositoryView, before: TagRecord) -> None:
        requested_at = self._clock()
        digest = await self._validation.check_tag(view, watched.tag, watched.negotiation, before)
        self._observe(watched, digest, requested_at)
        self._moves.checked(watched)
        if digest == before.digest:
            return
        if digest is not None and watched.prefetch_tried != digest and self._may_spend(view.host):
            logger.info(
                "hubcache: %s:%s moved to %s, which is fetched before clients request it",
                view.repository,
                watched.tag,
                digest,
            )
            await self._prefetch_image(watched, view, before, digest)
        is_stored = digest is not None and self._store.has(digest)
        if is_stored or self._may_spend(view.host):
            for _ in range(1 if is_stored else 2):
                await self._wait_for_budget(view.host)
            requested_at = self._clock()
            found = await self._validation.validate(view, watched.tag, watched.negotiation, head=not is_stored)
            self._observe(watched, found.digest, requested_at)

    async def _wait_for_budget(self, host: str) -> None:
        """Wait until the budget permits one more request."""
        await asyncio.sleep(min(self._budgets[host].reserve(self._clock()), _LONGEST_FETCH_SECONDS))

    async def _prefetch_image(
        self, watched: WatchedTag, view: RepositoryView, before: TagRecord, digest: Digest
    ) -> None:
        """Fetch what clients will request once the tag refers to `digest`; until then it refers to the old image."""
        # If this fails or takes too long, the tag refers to the old image until it becomes stale; then the next
        # validation moves the tag although the new layers are not stored.
        watched.prefetch_tried = digest
        fetching = asyncio.ensure_future(self._fetch_image(view, before.digest, digest))
        try:
            while not fetching.done():
                await self._validation.extend_freshness(view, watched.tag, watched.negotiation, before)
                await asyncio.wait((fetching,), timeout=max(0.5, self._manifests.tag_lifetime / 2))
            fetching.result()
        finally:
            fetching.cancel()

    async def _fetch_image(self, view: RepositoryView, before: Digest, digest: Digest) -> None:
        """Fetch an image if clients pull it: where no part of the old image is stored, they requested only the tag."""
        platforms = self._prefetch.pulled_platforms(before)
        parts = self._prefetch.children(before) or ()
        if platforms or any(self._store.has(part.digest) for part in parts):
            await self._prefetch.fetch(view, digest, platforms, lambda: self._wait_for_budget(view.host))

    async def close(self) -> None:
        """Cancel the checks that are running, and write what was observed."""
        if self._next_slice is not None:
            self._next_slice.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._moves.has_unwritten:
            await self._moves.write_some()
