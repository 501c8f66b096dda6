"""How many bytes the store may use, and what goes when that is less than it does.

The policy decides (`decide.retention`), this carries it out: one removal after the other, each explained.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..decide.retention import Eviction, Reason, Refusal, Retention
from ..oci.digest import Digest
from ..oci.errors import NotStored, StorageError
from .usage import Usage, on_disk

logger = logging.getLogger("hubcache")

ALLOWANCE = 2 << 20
"""Bytes kept below the cap for folders and for the index to grow between two looks at its size."""

_STEP = 256 << 20
"""Bytes freed at once when the cap was lowered, so that pulls go on in between."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A line of the history: what was removed when, and the policy's explanation."""

    at: float
    eviction: Eviction[Digest]


class Capacity:
    """`capacity`, `max_blob` (0 = no limit) and `min_free` are in bytes and may be changed at any time.

    `min_free` is None for the smaller of 1 GB and a twentieth of the file system.
    """

    def __init__(self, directory: Path, capacity: int, ledger: Usage, clock: Callable[[], float] = time.time) -> None:
        self.capacity = capacity
        self.max_blob = 0
        self.min_free: int | None = 0
        self.retention: Retention[Digest] = Retention()
        self.history: deque[Removal] = deque(maxlen=1000)
        self.removed = 0
        self._turn = asyncio.Lock()
        self._directory = directory
        self._ledger = ledger
        self._clock = clock

    def limit(self, index_bytes: int) -> int:
        """Bytes that content may use now: below the cap, and below what leaves `min_free` on the file system."""
        limit = self.capacity - index_bytes - ALLOWANCE
        if self.min_free != 0:
            try:
                state = os.statvfs(self._directory)
            except OSError as error:
                raise StorageError(f"cannot see how much of the disk is free: {error}") from error
            # What is reserved but not yet written is still counted as free by the file system: this errs on the side
            # of too much room by what is in flight, and `hubcache_min_free` is soft in that it looks again each time.
            floor = min(1 << 30, state.f_blocks * state.f_frsize // 20) if self.min_free is None else self.min_free
            limit = min(limit, self._ledger.present + state.f_bavail * state.f_frsize - floor)
        return limit

    async def reserve(
        self, digest: Digest, size: int, index_bytes: Callable[[], int], remove: Callable[[Digest], Awaitable[None]]
    ) -> None:
        """Take room for `size` bytes of `digest`, evicting for it; raises `NotStored` when the policy refuses.

        One after the other: what is being removed for one is neither free for another yet, nor there to be removed.
        """
        async with self._turn:
            await self._reserve(digest, size, index_bytes, remove)

    async def _reserve(
        self, digest: Digest, size: int, index_bytes: Callable[[], int], remove: Callable[[Digest], Awaitable[None]]
    ) -> None:
        """What was chosen to go may stay (somebody begins to read it while others are removed) and the limit may
        fall meanwhile: so the room is looked at again until nothing more has to go, and only then taken."""
        if self.max_blob and size > self.max_blob:
            raise NotStored(f"{size} bytes are more than hubcache_max_blob allows")
        while room := self._choose(digest, size, index_bytes()):
            await self._carry_out(room, remove)
        self._ledger.reserved += on_disk(size)

    def _choose(self, digest: Digest, size: int, index_bytes: int) -> tuple[Eviction[Digest], ...]:
        """What has to go now, so that `size` bytes fit; raises as `reserve` does."""
        needed, limit = on_disk(size), self.limit(index_bytes)
        if needed > self.capacity - index_bytes - ALLOWANCE:
            raise NotStored(f"{size} bytes are more than hubcache_size allows")
        if needed + self._ledger.reserved > limit:
            raise StorageError("no room: what is being fetched takes it, or others fill the disk")
        room = self.retention.admit(digest, needed, self._clock(), limit - self._ledger.used, self._ledger.keeps)
        if room.refusal in (Refusal.IN_USE, Refusal.UNWANTED) and needed + self._ledger.kept > limit:
            raise StorageError("the store is full of content that is pinned or in use")
        if room.refusal is not None:
            raise NotStored(f"not stored: {room.refusal}")
        return room.victims

    async def shrink(self, index_bytes: Callable[[], int], remove: Callable[[Digest], Awaitable[None]]) -> bool:
        """One step towards the limit, when it was lowered or others fill the disk; whether more steps are needed."""
        async with self._turn:
            over = self._ledger.used - self.limit(index_bytes())
            if over <= 0:
                return False
            room = self.retention.make_room(min(over, _STEP), self._clock(), self._ledger.keeps)
            await self._carry_out(room.victims, remove)
            return bool(room.victims) and self._ledger.used > self.limit(index_bytes())

    async def expire(self, remove: Callable[[Digest], Awaitable[None]]) -> None:
        """Remove what nobody asked for any more, and forget the history that is too old."""
        now = self._clock()
        await self._carry_out(self.retention.idle(now, self._ledger.keeps), remove)
        self.retention.forget(now)

    async def purge(self, digest: Digest, remove: Callable[[Digest], Awaitable[None]]) -> bool:
        """Remove content that must not stay (its file is damaged); whether the policy knew it."""
        eviction = self.retention.purge(digest, self._clock())
        if eviction is not None:
            await self._carry_out([eviction], remove)
        return eviction is not None

    async def _carry_out(
        self, victims: Sequence[Eviction[Digest]], remove: Callable[[Digest], Awaitable[None]]
    ) -> None:
        """Remove these. One that somebody began to read while those before it were removed stays, and so do all that
        come after one whose removal fails: the policy has given them up, and takes them back."""
        pending = deque(victims)
        try:
            while pending:
                eviction = pending[0]
                if self._ledger.keeps(eviction.key) and eviction.reason is not Reason.PURGED:
                    self._take_back(eviction)
                elif eviction.key in self._ledger.sizes:
                    self._tell(eviction)
                    await remove(eviction.key)
                pending.popleft()
        finally:
            for eviction in pending:
                self._take_back(eviction)

    def _take_back(self, eviction: Eviction[Digest]) -> None:
        if eviction.key in self._ledger.sizes:
            self.retention.stored(eviction.key, eviction.size, self._clock())

    def _tell(self, eviction: Eviction[Digest]) -> None:
        self.removed += 1
        self.history.append(Removal(self._clock(), eviction))
        logger.info(
            "hubcache: removed %s (%d bytes): %s, score %.3g, asked for %.2f times, idle %.0f s",
            eviction.key,
            eviction.size,
            eviction.reason,
            eviction.score,
            eviction.requests,
            eviction.idle,
        )
