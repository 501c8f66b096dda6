"""Keeps the bucket within its size: one node at a time lists it, and deletes what is requested least or left over.

A sweep needs no agreement of the nodes: a reader of a deleted blob goes on at the same byte elsewhere. It may be killed
or overtaken by another sweep at any point: `sweep_state` counts bytes that are uncertain as used.
"""

import asyncio
import logging
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import batched

from ..decide.bucket_plan import BucketPlan, RankClock, SummedCounts, short_digest
from . import keys
from .bucket import Bucket, BucketUnavailable, Entry, StoredObject
from .leases import Clock, Lease, Leases
from .popularity import FleetPopularity, merge_earlier, read_popularity
from .room import Nodes
from .sweep_state import GRANT_SECONDS, TARGET_SHARE, SweepState, Swept, grantable
from .tasks import end_task, start_task

logger = logging.getLogger("hubcache")

SWEEP_SECONDS = 600.0
"""Time between two sweeps."""

DEMAND_SECONDS = 60.0
"""Shortest time between two sweeps, when nodes need more space than there is."""

SWEEP_OBJECTS = 100_000
"""In a bucket with more objects these times are longer in proportion, so that lists stay below 10 requests a minute."""

LEFT_OVER_SECONDS = 3600.0
"""Leases, heartbeats and probes that were not written for this time are deleted."""

_LEASE = "sweep"
_PROBES = "probe"
_is_hex = re.compile("[0-9a-f]{64,128}").fullmatch
_NEXT_NODE_SECONDS = 20.0
"""The live nodes are due one after the other, so that the next one sweeps when one does not."""
_MOST_WAITING = 10
_WAIT_SECONDS = 90.0
"""Longest time that an upload waits for a sweep."""
_POLL_SECONDS = 2.0
_RETRY_SECONDS = 30.0
_DELETED_AT_ONCE = 1000
"""Keys in a request; the most that S3 permits."""
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class _Listing:
    """What a sweep has found: bytes and objects by the first part of their keys, and small objects to delete."""

    bytes: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    left_over: list[Entry] = field(default_factory=list)
    deleted: int = 0
    deleted_bytes: int = 0

    def add(self, entry: Entry) -> None:
        kind = entry.key.partition("/")[0]
        self.bytes[kind] += entry.size
        self.objects[kind] += 1

    def remove(self, key: str, size: int) -> None:
        kind = key.partition("/")[0]
        self.bytes[kind] -= size
        self.objects[kind] -= 1
        self.deleted += 1
        self.deleted_bytes += size


class Sweeper:
    """The sweeps of one node. `cap` is the size of the bucket in bytes; `half_life` and `expire_after` are in seconds,
    as the options of the retention policy are. All may be changed at any time."""

    def __init__(
        self,
        bucket: Bucket,
        clock: Clock,
        nodes: Nodes,
        leases: Leases,
        cap: int,
        half_life: float,
        expire_after: float,
    ) -> None:
        self.cap = cap
        self.half_life = half_life
        self.expire_after = expire_after
        self.state: SweepState | None = None
        """The account as this node has last seen it."""
        self._bucket = bucket
        self._clock = clock
        self._nodes = nodes
        self._leases = leases
        self._has_warned = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Sweep from now on, when no other node does."""
        self._task = start_task(self._sweep_repeatedly(), name="sweeps of the bucket")

    async def close(self) -> None:
        """Stop; a sweep that runs is broken off."""
        if self._task is None:
            return
        await end_task(self._task)
        self._task = None

    # -- when ---------------------------------------------------------------------------------------------------------

    async def make_room(self, needed: int) -> None:
        """Return when a sweep has ended after which `needed` bytes should be free, or when there was none in time.

        Raises `BucketUnavailable`.
        """
        deadline = self._clock.now() + _WAIT_SECONDS
        await self._read()
        before = self.state
        while self._clock.now() < deadline:
            if self._is_due(DEMAND_SECONDS) and await self.sweep(needed):
                return
            await asyncio.sleep(random.uniform(_POLL_SECONDS / 2, _POLL_SECONDS))  # noqa: S311 - jitter
            await self._read()
            if self.state is not None and (before is None or self.state.sweep != before.sweep):
                return

    async def _sweep_repeatedly(self) -> None:
        while True:
            try:
                await self._read()
                pause = self._due_in()
                if pause <= 0:
                    await self.sweep()
                    pause = _RETRY_SECONDS
                pause = min(pause, SWEEP_SECONDS)
            except BucketUnavailable as error:
                logger.debug("hubcache: the bucket was not swept: %s", error)
                pause = _RETRY_SECONDS
            await asyncio.sleep(pause)

    def _due_in(self) -> float:
        """Return the seconds until this node should sweep, if no other one does."""
        order = sorted(node.id for node in self._nodes.nodes)
        turn = min(order.index(self._nodes.me.id), _MOST_WAITING) * _NEXT_NODE_SECONDS
        return self._swept_at() + SWEEP_SECONDS * self._scale() + turn - self._clock.now()

    def _is_due(self, seconds: float) -> bool:
        return self._clock.now() >= self._swept_at() + seconds * self._scale()

    def _swept_at(self) -> float:
        """Return when the last sweep began. A time in the future does not count: the bucket's clock was set back."""
        if self.state is None or self.state.sweep.at > self._clock.now() + DEMAND_SECONDS:
            return -math.inf
        return self.state.sweep.at

    def _scale(self) -> float:
        objects = 0 if self.state is None else sum(self.state.sweep.objects.values())
        return max(1.0, objects / SWEEP_OBJECTS)

    async def _read(self) -> StoredObject | None:
        found = await self._bucket.get(keys.SWEEP_STATE)
        self.state = None if found is None else SweepState.decode(found.value)
        return found

    # -- how ----------------------------------------------------------------------------------------------------------

    async def sweep(self, needed: int = 0) -> bool:
        """Sweep now, unless another node does or just did; returns whether a sweep has ended.

        Afterwards a tenth of the cap is free, and `needed` bytes at least. Raises `BucketUnavailable`.
        """
        lease = await self._leases.acquire(_LEASE)
        if not isinstance(lease, Lease):
            return False
        try:
            await self._read()
            return not self._is_due(DEMAND_SECONDS) or await self._sweep(needed, lease)
        finally:
            await lease.release()

    async def _sweep(self, needed: int, lease: Lease) -> bool:
        began, now = time.monotonic(), self._clock.now()
        found = await self._read()
        before = self.state
        if found is not None and before is None and now < found.entry.modified + GRANT_SECONDS:
            if not self._has_warned:
                logger.warning("hubcache: the bucket is not swept: a newer version keeps its account")
            self._has_warned = True
            return False
        popularity = await read_popularity(self._bucket, self.half_life, now, self._is_live)
        plan = self._plan(before, popularity.sums, now)
        listing = await self._list(plan, popularity, now)
        granted = 0 if before is None else sum(grant.bytes for grant in before.unexpired(now).values())
        free = max(self.cap - int(self.cap * TARGET_SHARE), self.cap - grantable(self.cap) + needed)
        idle = sum(eviction.size for eviction in plan.idle)
        left_over = sum(entry.size for entry in listing.left_over)
        excess = listing.bytes.total() - idle - left_over + granted + free - self.cap
        victims = await asyncio.to_thread(plan.choose, excess)
        if lease.is_lost:
            return False
        await self._delete(listing, ((entry.key, entry.size) for entry in listing.left_over))
        await self._delete(listing, ((each.key, each.size) for each in [*plan.idle, *victims]))
        await merge_earlier(self._bucket, popularity, now)
        sweep = Swept(
            now,
            self._nodes.me.id,
            dict(listing.bytes),
            dict(listing.objects),
            listing.deleted,
            listing.deleted_bytes,
            time.monotonic() - began,
        )
        return await self._write(before, found, listing, plan.clock, sweep)

    def _plan(self, before: SweepState | None, sums: SummedCounts, now: float) -> BucketPlan:
        if before is None:
            return BucketPlan(now, sums, RankClock(), self.expire_after)
        most = max(0, before.used + before.granted - int(self.cap * TARGET_SHARE)) + self.cap // 4
        return BucketPlan(now, sums, before.clock, self.expire_after, most)

    async def _list(self, plan: BucketPlan, popularity: FleetPopularity, now: float) -> _Listing:
        """List everything that the fleet writes: blobs into the plan, the others by their age."""
        listing = _Listing()
        for kind in (keys.BLOBS, keys.PRIVATE_BLOBS):
            async for entry in self._bucket.list(kind):
                listing.add(entry)
                digest = keys.blob_digest(entry.key)
                if digest is not None:
                    plan.add(entry.key, short_digest(digest.hex), entry.size, entry.modified)
        for kind, seconds in self._lifetimes().items():
            async for entry in self._bucket.list(kind):
                listing.add(entry)
                if entry.modified < now - seconds and not self._is_requested(plan, entry.key):
                    listing.left_over.append(entry)
        for entry in popularity.entries:
            listing.add(entry)
        return listing

    def _lifetimes(self) -> dict[str, float]:
        return {
            keys.MANIFESTS: self.expire_after,
            keys.TAGS: self.expire_after,
            keys.LEASES: LEFT_OVER_SECONDS,
            keys.NODES: LEFT_OVER_SECONDS,
            _PROBES: LEFT_OVER_SECONDS,
        }

    def _is_requested(self, plan: BucketPlan, key: str) -> bool:
        """Whether a manifest was requested in `expire_after` seconds; tags are written when they are validated."""
        hex = key.rpartition("-")[2]
        return (
            key.startswith(f"{keys.MANIFESTS}/") and _is_hex(hex) is not None and plan.is_requested(short_digest(hex))
        )

    async def _delete(self, listing: _Listing, objects: Iterable[tuple[str, int]]) -> None:
        for some in batched(objects, _DELETED_AT_ONCE):
            await self._bucket.delete(*(key for key, _ in some))
            for key, size in some:
                listing.remove(key, size)

    async def _write(
        self, before: SweepState | None, found: StoredObject | None, listing: _Listing, clock: RankClock, sweep: Swept
    ) -> bool:
        """Write the result into the account; returns False when the account was lost or begun in the meantime."""
        listed = listing.bytes.total()
        for _ in range(_ATTEMPTS):
            if before is None:
                is_lost = found is None and any(listing.objects[kind] for kind in (keys.BLOBS, keys.PRIVATE_BLOBS))
                state = SweepState.begun(listed, self.cap, clock, sweep, is_lost=is_lost)
            else:
                found = await self._read()
                if found is None or self.state is None or self.state.id != before.id:
                    return False
                state = self.state.after_sweep(before, listed, self.cap, clock, sweep)
            if found is None:
                written = await self._bucket.create(keys.SWEEP_STATE, state.encode())
            else:
                written = await self._bucket.replace(keys.SWEEP_STATE, state.encode(), found.entry.e_tag)
            if written is not None:
                self.state = state
                logger.info(
                    "hubcache: swept the bucket: %d objects with %d bytes remain, %d with %d bytes were deleted",
                    *(listing.objects.total(), listed, listing.deleted, listing.deleted_bytes),
                )
                return True
            if before is None:
                return False
            await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311 - jitter
        raise BucketUnavailable("the account of the bucket is replaced by other nodes all the time")

    def _is_live(self, id: str) -> bool:
        return any(node.id == id for node in self._nodes.nodes)
