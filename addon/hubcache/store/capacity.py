"""Keeps the store within its capacity: reserves space for new content and evicts content for it.

The retention policy (`decide.retention`) chooses what to evict; this removes it, one digest after the other, and logs
the reason for each.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..decide.eviction import Eviction, Reason, Refusal
from ..decide.retention import Retention
from ..oci.digest import Digest
from ..oci.errors import NotStored, StorageError
from .usage import Usage, size_on_disk

logger = logging.getLogger("hubcache")

ALLOWANCE = 2 << 20
"""Bytes kept below the cap for folders, and for the index to grow between two checks of its size."""

_STEP = 256 << 20
"""Bytes freed at once when the cap was lowered, so that pulls continue in between."""

type Remove = Callable[[Digest], Awaitable[None]]
"""Removes content from the disk."""


@dataclass(frozen=True, slots=True)
class Removal:
    """An entry of the history: when content was removed (seconds since the epoch), and the policy's explanation."""

    at: float
    eviction: Eviction[Digest]


class Capacity:
    """`max_bytes`, `max_blob` (0 = no limit) and `min_free` are in bytes and may be changed at any time.

    When `min_free` is None, it is the smaller of 1 GB and a twentieth of the file system.
    """

    def __init__(self, directory: Path, max_bytes: int, usage: Usage, clock: Callable[[], float] = time.time) -> None:
        self.max_bytes = max_bytes
        self.max_blob = 0
        self.min_free: int | None = 0
        self.retention: Retention[Digest] = Retention()
        self.history: deque[Removal] = deque(maxlen=1000)
        """The last removals, the newest last."""
        self.removed = 0
        """How many digests were removed since the start."""
        self._turn = asyncio.Lock()
        self._directory = directory
        self._usage = usage
        self._clock = clock

    def limit(self, index_bytes: int) -> int:
        """Return the bytes that content may use now: below the cap, and leaving `min_free` on the file system."""
        limit = self.max_bytes - index_bytes - ALLOWANCE
        if self.min_free != 0:
            try:
                state = os.statvfs(self._directory)
            except OSError as error:
                raise StorageError(f"cannot read how much of the disk is free: {error}") from error
            # The file system counts reserved but unwritten bytes as free, so the limit is too high by these bytes:
            # `hubcache_min_free` is a soft limit, checked again each time.
            floor = min(1 << 30, state.f_blocks * state.f_frsize // 20) if self.min_free is None else self.min_free
            limit = min(limit, self._usage.on_disk + state.f_bavail * state.f_frsize - floor)
        return limit

    async def reserve(self, digest: Digest, size: int, index_bytes: Callable[[], int], remove: Remove) -> None:
        """Reserve `size` bytes for `digest`, evicting content for it; raises `NotStored` when the policy refuses, and
        `StorageError` when there is no space.

        Reservations run one at a time: another one must not count space that is being freed for this one, nor evict
        content that is already being removed.
        """
        async with self._turn:
            await self._reserve(digest, size, index_bytes, remove)

    async def _reserve(self, digest: Digest, size: int, index_bytes: Callable[[], int], remove: Remove) -> None:
        """Evict until nothing more has to be evicted, and only then reserve: while content is removed, a client may
        begin to read other chosen content, and the limit may fall."""
        if self.max_blob and size > self.max_blob:
            raise NotStored(f"{size} bytes are more than hubcache_max_blob allows")
        while victims := self._choose(digest, size, index_bytes()):
            await self._evict(victims, remove)
        self._usage.reserved += size_on_disk(size)

    def _choose(self, digest: Digest, size: int, index_bytes: int) -> tuple[Eviction[Digest], ...]:
        """Return what has to be evicted for `size` bytes; raises as `reserve` does."""
        needed, limit = size_on_disk(size), self.limit(index_bytes)
        if needed > self.max_bytes - index_bytes - ALLOWANCE:
            raise NotStored(f"{size} bytes are more than hubcache_size allows")
        if needed + self._usage.reserved > limit:
            raise StorageError("no space: running fills have reserved it, or other programs fill the disk")
        free = limit - self._usage.used
        if digest in self._usage.held:
            return self._choose_for_held(needed, free, limit)
        decision = self.retention.admit(digest, needed, self._clock(), free, self._usage.is_protected)
        if decision.refusal in (Refusal.IN_USE, Refusal.UNWANTED) and needed + self._usage.protected > limit:
            raise StorageError("the store is full of content that is pinned or in use")
        if decision.refusal is not None:
            raise NotStored(f"not stored: {decision.refusal}")
        return decision.victims

    def _choose_for_held(self, needed: int, free: int, limit: int) -> tuple[Eviction[Digest], ...]:
        """Return what has to be evicted for content that the operator asked for: what is requested least, however often
        that is."""
        if needed + self._usage.protected > limit:
            raise NotStored("not stored: the store is full of content that is pinned or in use")
        if needed <= free:
            return ()
        return self.retention.evict(needed - free, self._clock(), self._usage.is_protected).victims

    def available(self, index_bytes: int) -> int:
        """Return the bytes that held content could still use: all that are not reserved, pinned, in use or held."""
        return max(0, min(self.limit(index_bytes), self.max_bytes - index_bytes - ALLOWANCE) - self._usage.protected)

    async def shrink(self, index_bytes: Callable[[], int], remove: Remove) -> bool:
        """Evict up to `_STEP` bytes if more is used than the limit allows; return whether more steps are needed."""
        async with self._turn:
            excess = self._usage.used - self.limit(index_bytes())
            if excess <= 0:
                return False
            decision = self.retention.evict(min(excess, _STEP), self._clock(), self._usage.is_protected)
            await self._evict(decision.victims, remove)
            return bool(decision.victims) and self._usage.used > self.limit(index_bytes())

    async def expire(self, remove: Remove) -> None:
        """Remove content that was not requested for `expire_after` seconds, and request counts that are too old."""
        now = self._clock()
        await self._evict(self.retention.evict_idle(now, self._usage.is_protected), remove)
        self.retention.forget_absent(now)

    async def purge(self, digest: Digest, remove: Remove) -> bool:
        """Remove content that must not stay (its file is damaged); return whether the policy knew it as stored."""
        eviction = self.retention.purge(digest, self._clock())
        if eviction is not None:
            await self._evict([eviction], remove)
        return eviction is not None

    def keep(self, digest: Digest) -> None:
        """Record in the policy that content which it counts as removed is still stored, unless it has been removed."""
        size = self._usage.sizes.get(digest)
        if size is not None:
            self.retention.record_stored(digest, size_on_disk(size), self._clock())

    async def _evict(self, victims: Sequence[Eviction[Digest]], remove: Remove) -> None:
        """Remove these victims. The policy already counts them as removed, so it is corrected for those that stay:
        content that a client began to read in the meantime, and everything after a failed removal."""
        pending = deque(victims)
        try:
            while pending:
                eviction = pending[0]
                if self._usage.is_protected(eviction.key) and eviction.reason is not Reason.PURGED:
                    self.keep(eviction.key)
                elif eviction.key in self._usage.sizes:
                    self._record(eviction)
                    await remove(eviction.key)
                pending.popleft()
        finally:
            for eviction in pending:
                self.keep(eviction.key)

    def _record(self, eviction: Eviction[Digest]) -> None:
        self.removed += 1
        self.history.append(Removal(self._clock(), eviction))
        logger.info(
            "hubcache: removed %s (%d bytes): %s, score %.3g, requested %.2f times, idle %.0f s",
            eviction.key,
            eviction.size,
            eviction.reason,
            eviction.score,
            eviction.requests,
            eviction.idle,
        )
