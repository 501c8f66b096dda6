"""Keeps tags that are asked for often in step with their registry, so that no client waits for it.

What is looked at, when, and what first is decided in `decide/watched` and `decide/refresh_schedule`, for how many
requests in `decide/budget`. When a tag moved, the new manifests and the layers of the platforms that people pull are
fetched first; until they are here, the tag goes on as it was.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from cachetools import LRUCache

from ..decide.budget import Budget
from ..decide.records import TagRecord
from ..decide.refresh_schedule import Schedule
from ..decide.watched_tag import OFTEN, WatchedTag
from ..oci.digest import Digest
from ..oci.errors import HubcacheError
from ..store.store import Store
from ..transfer.upstream import Upstream
from .best_effort import BestEffortWriter
from .cached_manifests import CachedManifests, ManifestResult
from .messages import Result
from .prefetch import Prefetch
from .repository_view import RepositoryView
from .tag_moves import READS, TagMoves

logger = logging.getLogger("hubcache")

MAX_TAGS = 200_000
"""Tags that are watched, each some 700 bytes; beyond them, the one that nobody asked for longest is forgotten."""

MAX_NEGOTIATION = 512
"""Characters of the `Accept` of a tag that is watched. Clients write it and it is kept; the four common types have some
240."""

TICK_SECONDS = 5.0
"""How often `tick` is called."""

_EARLY = 0.1
"""Part of a tag's lifetime, but at least two ticks, before its end by which it is validated at the latest; tags are
spread over as much again."""

_AT_ONCE = 4
"""Looks at one registry that run at the same time."""

_SLICE = 50
"""Entries of the schedule that are handled in one go: a millisecond."""

_NEXT_SLICE_SECONDS = 0.01
_SET_BACK_SECONDS = 60.0
_LONGEST_FETCH_SECONDS = 900.0

type _Key = tuple[str, str, str, str]


class _Table(LRUCache[_Key, WatchedTag]):
    """What is watched; what is forgotten is not looked at any more."""

    def __init__(self, size: int, schedule: Schedule) -> None:
        super().__init__(size)
        self._schedule = schedule

    def popitem(self) -> tuple[_Key, WatchedTag]:
        key, watched = super().popitem()
        watched.is_dropped = True
        self._schedule.drop(watched)
        return key, watched


class TagRefresh:
    """`may_spend` tells whether the host's rate limit leaves room for background pulls; `rate` is the budget of each
    registry in requests per second, `upstreams` are the registries by host."""

    def __init__(
        self,
        store: Store,
        writer: BestEffortWriter,
        manifests: CachedManifests,
        prefetch: Prefetch,
        may_spend: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.enabled = True
        self.upstreams: Mapping[str, Upstream] = {}
        self._store = store
        self._manifests = manifests
        self._prefetch = prefetch
        self._may_spend = may_spend
        self._clock = clock
        self._schedule = Schedule()
        self._watched = _Table(MAX_TAGS, self._schedule)
        self._budgets: dict[str, Budget] = {}
        self._busy = Counter[str]()
        self._moves = TagMoves(store, writer)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticked_at = clock()
        self._next_slice: asyncio.TimerHandle | None = None

    def apply(self, rate: float, upstreams: Mapping[str, Upstream]) -> None:
        """Take over another rate, and other registries."""
        now = self._clock()
        self.upstreams = upstreams
        for host in upstreams:
            self._budgets.setdefault(host, Budget(rate, now))
        for budget in self._budgets.values():
            budget.change(rate, now)

    # -- clients ------------------------------------------------------------------------------------------------

    def record_request(self, view: RepositoryView, tag: str, negotiation: str, found: ManifestResult) -> None:
        """A client asked for a tag that anybody may see, and was answered `found`."""
        lifetime = self._manifests.tag_lifetime
        if not self.enabled or len(negotiation) > MAX_NEGOTIATION:
            return
        now = self._clock()
        key = (view.host, view.repository, tag, negotiation)
        watched = self._watched.get(key)
        if watched is None:
            # Of what is fresh it is not known for how long: the mean, until it is read
            watched = self._watched[key] = WatchedTag(*key, now, now, validated_at=now - lifetime / 2)
        watched.count_request(now, lifetime)
        if found.result in (Result.REVALIDATED, Result.MISS):
            self._seen(watched, found.digest, now)
        if watched.daily_requests >= OFTEN:
            self._moves.want(watched)
        if watched.requests >= 2 * watched.scheduled_requests or not self._schedule.has(watched):
            self._place(watched, now)

    def _seen(self, watched: WatchedTag, digest: Digest | None, at: float) -> None:
        before = watched.changes
        watched.record_validation(digest, at)
        if watched.changes is not before:
            self._moves.changed(watched)

    # -- what is due --------------------------------------------------------------------------------------------

    def _due(self, watched: WatchedTag, now: float) -> float | None:
        lifetime = self._manifests.tag_lifetime
        lead = min(max(lifetime * _EARLY, 2 * TICK_SECONDS), lifetime / 3)
        return watched.next_validation(now, lifetime, lead)

    def _place(self, watched: WatchedTag, now: float, not_before: float = 0.0) -> None:
        """Let a tag be due when it should be, or not at all."""
        due = None if watched.is_validating or watched.is_dropped else self._due(watched, now)
        if due is None:
            self._schedule.drop(watched)
        elif len(self._schedule) < 4 * MAX_TAGS:  # entries that are over stay for a while
            watched.scheduled_requests = max(watched.requests, OFTEN)
            self._schedule.put(watched, max(due, not_before))

    def tick(self) -> None:
        """Begin to look at what is due; call it every few seconds. What is much, is done bit by bit."""
        if not self.enabled:
            return
        now, before = self._clock(), self._ticked_at
        self._ticked_at = now
        if now < before - _SET_BACK_SECONDS:
            self._schedule.clear()  # or nothing would be due until the clock is where it was
        for watched in self._moves.read_some():
            if watched.changes is not None:
                self._place(watched, now)
        if self._moves.has_news:
            self._spawn(self._moves.write_some())
        more = self._schedule.collect_due(now, self._manifests.tag_lifetime, _SLICE)
        for host in self.upstreams:
            more = self._look_at_some(host, len(self.upstreams)) or more
        if more and self._next_slice is None:
            self._next_slice = asyncio.get_running_loop().call_later(_NEXT_SLICE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._next_slice = None
        self.tick()

    def _look_at_some(self, host: str, hosts: int) -> bool:
        """As many as may be, as one of so many registries; whether to go on in a moment.

        A 429 to whatever manifest request pauses this until its pause is over: the upstream remembers that.
        """
        upstream, now = self.upstreams[host], self._clock()
        if not upstream.is_reachable or upstream.is_rate_limited("manifest", ""):
            return False
        reads = 0
        for _ in range(-(-_SLICE // hosts)):
            if self._busy[host] >= _AT_ONCE or self._budgets[host].wait(now) > 0 or not self._schedule.due(host):
                return False
            watched = self._schedule.pop(host)
            if watched is None or not self._is_still_due(watched, now):
                continue
            reads += 1
            record = self._read(watched)
            if record is not None and self._is_still_due(watched, now) and self._budgets[host].spend(now):
                watched.is_validating = True
                self._busy[host] += 1
                self._spawn(self._look(watched, RepositoryView(upstream, watched.repository), record))
            if reads >= READS / hosts:
                return False
        return True

    def _is_still_due(self, watched: WatchedTag, now: float) -> bool:
        """By what is known of it now; if it is not, it gets its place."""
        due = None if watched.is_dropped else self._due(watched, now)
        if due is None or due <= now:
            return due is not None
        self._place(watched, now)
        return False

    def _read(self, watched: WatchedTag) -> TagRecord | None:
        """What the store knows of a tag: clients validate it, too."""
        self._moves.read(watched)
        record = self._store.tags.get(watched.host, watched.repository, watched.tag).get(watched.negotiation)
        if record is not None:  # where it says that the tag was, while what it moved to is fetched, is no news
            watched.digest = watched.digest or record.digest
            watched.validated_at = record.validated_at
        return record

    # -- a look -------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self, watched: WatchedTag, view: RepositoryView, record: TagRecord) -> None:
        looked_at = self._clock()
        watched.unused_validations += 1
        try:
            async with asyncio.timeout(_LONGEST_FETCH_SECONDS):
                await self._look_or_raise(watched, view, record)
        except (HubcacheError, TimeoutError) as error:
            logger.info("hubcache: %s:%s not kept in step: %s", watched.repository, watched.tag, error)
        finally:
            watched.is_validating = False
            self._busy[watched.host] -= 1
        # One that fails, or that is not there any more, would else be tried without a pause.
        self._place(watched, self._clock(), not_before=looked_at + self._manifests.tag_lifetime / 2)
        self.tick()

    async def _look_or_raise(self, watched: WatchedTag, view: RepositoryView, before: TagRecord) -> None:
        asked_at = self._clock()
        now_at = await self._manifests.check_tag(view, watched.tag, watched.negotiation, before)
        self._seen(watched, now_at, asked_at)
        self._moves.looked(watched)
        if now_at == before.digest:
            return
        if now_at is not None and watched.prefetch_tried != now_at and self._may_spend(view.host):
            logger.info("hubcache: %s:%s moved to %s, fetching it ahead", view.repository, watched.tag, now_at)
            await self._fetch_ahead(watched, view, before, now_at)
        here = now_at is not None and self._store.has(now_at)
        if here or self._may_spend(view.host):
            for _ in range(1 if here else 2):
                await self._spend(view.host)
            asked_at = self._clock()
            found = await self._manifests.validate(view, watched.tag, watched.negotiation, head=not here)
            self._seen(watched, found.digest, asked_at)

    async def _spend(self, host: str) -> None:
        """Wait until the budget permits one request more."""
        await asyncio.sleep(min(self._budgets[host].reserve(self._clock()), _LONGEST_FETCH_SECONDS))

    async def _fetch_ahead(self, watched: WatchedTag, view: RepositoryView, before: TagRecord, digest: Digest) -> None:
        """Fetch what will be asked for when the tag is at `digest`; keep the tag where it was meanwhile."""
        # If this fails, or takes too long, the tag stays until it goes stale, for an outage; next time it moves without
        # its layers.
        watched.prefetch_tried = digest
        fetching = asyncio.ensure_future(self._fetch_image(view, before.digest, digest))
        try:
            while not fetching.done():
                await self._manifests.extend_freshness(view, watched.tag, watched.negotiation, before)
                await asyncio.wait((fetching,), timeout=max(0.5, self._manifests.tag_lifetime / 2))
            fetching.result()
        finally:
            fetching.cancel()

    async def _fetch_image(self, view: RepositoryView, before: Digest, digest: Digest) -> None:
        """Only what people really pull: an image none of whose parts is here was only looked at."""
        platforms = self._prefetch.pulled_platforms(before)
        parts = self._prefetch.children(before) or ()
        if platforms or any(self._store.has(part.digest) for part in parts):
            await self._prefetch.fetch(view, digest, platforms, lambda: self._spend(view.host))

    async def close(self) -> None:
        """End what runs."""
        if self._next_slice is not None:
            self._next_slice.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._moves.has_news:
            await self._moves.write_some()
