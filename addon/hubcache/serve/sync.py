"""Keeps tags that are asked for often in step with their registry, so that no client waits for it.

Before such a tag goes stale it is validated in the background. When it moved, the new manifests and the layers of the
platforms that people pull are fetched first; until they are here, the tag goes on as it was.
"""

import asyncio
import logging
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from ..decide.records import TagRecord
from ..decide.tally import Tally
from ..oci.digest import Digest
from ..oci.errors import HubcacheError
from ..store.store import Store
from .ahead import Ahead
from .manifests import Manifests
from .view import View

logger = logging.getLogger("hubcache")

OFTEN = 3.0
"""Requests (decayed, half of them within `HALF_LIFE`) from which on a tag is kept in step."""

HALF_LIFE = 3600.0
MAX_TAGS = 10_000
TICK_SECONDS = 5.0
"""How often `tick` is called."""

_EARLY = 0.1
"""Part of a tag's lifetime, but at least two ticks, before its end by which it is validated at the latest; tags are
spread over as much again."""

_AT_ONCE = 4
_LONGEST_FETCH_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Watched:
    """One tag as one kind of client asks for it."""

    view: View
    tag: str
    negotiation: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Equal for the same question."""
        return self.view.host, self.view.repository, self.tag, self.negotiation


class Sync:
    """`may_spend` tells whether the host's rate limit leaves room for background pulls."""

    def __init__(
        self,
        store: Store,
        manifests: Manifests,
        ahead: Ahead,
        may_spend: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.enabled = True
        self._store = store
        self._manifests = manifests
        self._ahead = ahead
        self._may_spend = may_spend
        self._clock = clock
        self._asked: dict[tuple[str, str, str, str], tuple[Watched, Tally]] = {}
        self._failed: dict[tuple[str, str, str, str], Digest] = {}
        self._busy: set[tuple[str, str, str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, view: View, tag: str, negotiation: str) -> None:
        """A client asked for a tag that anybody may see."""
        watched = Watched(View(view.upstream, view.repository), tag, negotiation)
        now = self._clock()
        _, before = self._asked.get(watched.key, (watched, Tally(0.0, now)))
        if watched.key not in self._asked and len(self._asked) >= MAX_TAGS:
            self._asked = {key: value for key, value in self._asked.items() if value[1].at(now, HALF_LIFE) >= 1.0}
            self._failed = {key: digest for key, digest in self._failed.items() if key in self._asked}
            if len(self._asked) >= MAX_TAGS:
                return
        self._asked[watched.key] = (watched, before.plus(now, HALF_LIFE))

    def tick(self) -> None:
        """Begin to validate what is due; call it every few seconds."""
        if not self.enabled:
            return
        now = self._clock()
        for key, (watched, tally) in self._asked.items():
            if len(self._busy) >= _AT_ONCE:
                return
            if key not in self._busy and tally.at(now, HALF_LIFE) >= OFTEN and self._is_due(watched, now):
                self._busy.add(key)
                task = asyncio.create_task(self._renew(watched))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _record(self, watched: Watched) -> TagRecord | None:
        tags = self._store.tags(watched.view.host, watched.view.repository, watched.tag)
        return tags.get(watched.negotiation)

    def _is_due(self, watched: Watched, now: float) -> bool:
        record = self._record(watched)
        if record is None or not watched.view.upstream.reachable:
            return False
        spread = zlib.crc32("\n".join(watched.key).encode()) / 2**32
        lifetime = self._manifests.tag_lifetime
        margin = min(max(lifetime * _EARLY, 2 * TICK_SECONDS), lifetime / 3)
        return now - record.validated_at >= lifetime - margin * (1 + spread)

    async def _renew(self, watched: Watched) -> None:
        try:
            async with asyncio.timeout(_LONGEST_FETCH_SECONDS):
                await self._renew_or_raise(watched)
        except (HubcacheError, TimeoutError) as error:
            logger.info("hubcache: %s:%s not kept in step: %s", watched.view.repository, watched.tag, error)
        finally:
            self._busy.discard(watched.key)
        if not self._is_due(watched, self._clock()):  # or one that fails would be tried without a pause
            self.tick()

    async def _renew_or_raise(self, watched: Watched) -> None:
        view, before = watched.view, self._record(watched)
        if before is None:
            return
        now_at = await self._manifests.current(view, watched.tag, watched.negotiation)
        moved = now_at is not None and now_at != before.digest and self._failed.get(watched.key) != now_at
        if now_at is not None and moved and self._may_spend(view.host):
            logger.info("hubcache: %s:%s moved to %s, fetching it ahead", view.repository, watched.tag, now_at)
            await self._fetch_ahead(watched, before, now_at)
        here = now_at is not None and self._store.has(now_at)
        if now_at == before.digest or here or self._may_spend(view.host):
            await self._manifests.validate(view, watched.tag, watched.negotiation, head=not here)

    async def _fetch_ahead(self, watched: Watched, before: TagRecord, digest: Digest) -> None:
        """Fetch what will be asked for when the tag is at `digest`; keep the tag where it was meanwhile."""
        fetching = asyncio.ensure_future(self._fetch_image(watched.view, before.digest, digest))
        try:
            while not fetching.done():
                await self._manifests.prolong(watched.view, watched.tag, watched.negotiation, before)
                await asyncio.wait((fetching,), timeout=max(0.5, self._manifests.tag_lifetime / 2))
            fetching.result()
        except HubcacheError:
            # The tag stays where it is until it goes stale, for an outage; next time it moves without its layers.
            self._failed[watched.key] = digest
            raise
        finally:
            fetching.cancel()

    async def _fetch_image(self, view: View, before: Digest, digest: Digest) -> None:
        """Only what people really pull: an image none of whose parts is here was only looked at."""
        platforms = self._ahead.pulled_platforms(before)
        parts = self._ahead.children(before) or ()
        if platforms or any(self._store.has(part.digest) for part in parts):
            await self._ahead.fetch(view, digest, platforms)

    async def close(self) -> None:
        """End what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
