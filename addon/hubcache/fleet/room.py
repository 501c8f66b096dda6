"""The bytes that this node may add to the bucket, taken in portions from the account that all nodes keep."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from . import keys
from .bucket import Bucket, BucketUnavailable
from .leases import Clock, Identity
from .sweep_state import SweepState
from .tasks import end_task, start_task

UPLOAD_SECONDS = 1800.0
"""An upload that takes longer has to be broken off: its bytes could be granted to others."""

GRANT_USE_SECONDS = 300.0
"""Uploads are begun with a grant for this time after it was taken."""

_FAILED_SECONDS = 300.0
"""A failed upload may still appear in the bucket for this time: the store has the request, the response was lost."""

_IDLE_SECONDS = 60.0
"""A grant of which nothing was used for this time is given back."""

GRANT_SHARES = 8
"""A node takes this part of its equal share of the free bytes at once: many nodes can take, and few write at a time."""

LARGEST_SHARE = 4
"""A blob may have this part of the cap. For it, a sweep would delete a quarter of what the bucket has."""

_SWEEPS = 2
"""Sweeps for which an upload waits: other nodes may have taken the bytes that the first one has freed."""

_ATTEMPTS = 12
"""Attempts to replace the account while other nodes replace it."""

_PAUSE_SECONDS = 0.2
"""Longest pause between two of these."""

type MakeRoom = Callable[[int], Awaitable[None]]
"""Returns when a sweep has ended after which this number of bytes should be free, or when there was none in time."""


class Nodes(Protocol):
    """The nodes of the fleet."""

    @property
    def me(self) -> Identity:
        """This node."""

    @property
    def nodes(self) -> tuple[Identity, ...]:
        """The live nodes, with this one."""


class Room:
    """Grants of this process. `cap` is the size of the bucket in bytes; it may be changed at any time."""

    def __init__(self, bucket: Bucket, clock: Clock, nodes: Nodes, cap: int, make_room: MakeRoom) -> None:
        self.cap = cap
        self._bucket = bucket
        self._clock = clock
        self._nodes = nodes
        self._make_room = make_room
        self._process = nodes.me.id
        self._turn = asyncio.Lock()
        self._unused = 0
        """Bytes of the grant with which no upload has begun."""
        self._uploading = 0
        self._failed: list[tuple[float, int]] = []
        """Times until which failed uploads may appear, and their bytes."""
        self._ended = 0
        """Bytes of ended uploads that are not reported yet."""
        self._taken_at = 0.0
        self._used_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Give back from now on what is not used."""
        self._task = start_task(self._give_back_repeatedly(), name="grants of the bucket")

    async def close(self) -> None:
        """Give back what was not used."""
        if self._task is None:
            return
        await end_task(self._task)
        self._task = None
        with contextlib.suppress(BucketUnavailable):
            await self.give_back()

    async def take(self, size: int) -> bool:
        """Whether `size` bytes may be uploaded now; if so, `ended` has to be called once, within `UPLOAD_SECONDS`.

        When too little is free, this waits for a sweep. Raises `BucketUnavailable`.
        """
        if size > self.cap // LARGEST_SHARE:
            return False
        async with self._turn:
            if self._clock.now() - self._taken_at > GRANT_USE_SECONDS:
                self._unused = 0  # the account still contains it, until the next report
            if self._unused < size and not await self._refill(size):
                return False
            self._unused -= size
            self._uploading += size
            self._used_at = self._clock.now()
            return True

    def ended(self, size: int, *, is_stored: bool) -> None:
        """Record that an upload has ended, and whether the bucket has confirmed it."""
        self._uploading -= size
        if is_stored:
            self._ended += size
        else:
            self._failed.append((self._clock.now() + _FAILED_SECONDS, size))

    async def give_back(self) -> None:
        """Report, and give back what is not used. Raises `BucketUnavailable`."""
        async with self._turn:
            self._count_failed()
            if self._unused or self._ended:
                self._unused = 0  # before the write: it may succeed although its response is lost
                await self._report(lambda _: 0)

    async def _give_back_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(_IDLE_SECONDS / 2)
            if self._clock.now() - self._used_at > _IDLE_SECONDS:
                with contextlib.suppress(BucketUnavailable):
                    await self.give_back()

    async def _refill(self, size: int) -> bool:
        """Take a portion with which `size` bytes can be uploaded; returns whether there is one."""

        def portion(free: int) -> int:
            missing = size - self._unused
            return min(free, max(missing, free // (GRANT_SHARES * len(self._nodes.nodes)))) if missing <= free else 0

        for _ in range(_SWEEPS):
            if await self._report(portion):
                return True
            await self._make_room(size)
        return await self._report(portion)

    async def _report(self, portion: Callable[[int], int]) -> bool:
        """Replace the account by one that contains the present state of this process, and take `portion(free)` bytes.

        Returns whether there were some. Raises `BucketUnavailable`, also when others replace the account all the time.
        """
        for _ in range(_ATTEMPTS):
            found = await self._bucket.get(keys.SWEEP_STATE)
            state = None if found is None else SweepState.decode(found.value)
            if found is None or state is None:
                return False
            self._count_failed()
            now = self._clock.now()
            added, ended = portion(state.free(self.cap)), self._ended
            kept = self._unused + self._uploading + sum(size for _, size in self._failed)
            after = state.with_grant(self._process, kept, added, ended, now)
            if await self._bucket.replace(keys.SWEEP_STATE, after.encode(), found.entry.e_tag):
                self._ended -= ended
                self._unused += added
                self._taken_at = now
                return added > 0
            await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311 - jitter
        raise BucketUnavailable("the account of the bucket is replaced by other nodes all the time")

    def _count_failed(self) -> None:
        """Count failed uploads that can no longer appear as ended: they may have appeared."""
        now = self._clock.now()
        self._ended += sum(size for until, size in self._failed if until <= now)
        self._failed = [(until, size) for until, size in self._failed if until > now]
