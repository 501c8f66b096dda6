"""Which blobs a fleet deletes from its bucket: the policy of `retention` for counts that many nodes made. Pure.

A sweep sees each blob once, in no order, with the sum of what all nodes counted. That suffices for the policy:

* The rank of a blob is `clock + requests / weight(size)` as of its last request. The last request and the count come
  from the nodes; the value that the policy's clock had at that time comes from `RankClock`, which has its history.
* Blobs are deleted from the lowest rank upwards, and the clock rises to the highest rank of a deleted blob.
* Blobs that were not requested for `expire_after` seconds are deleted, whether there is space or not.
* A blob that no node counts among its busiest was requested once, when it was uploaded.

There is no admission: a blob that is not in the bucket costs each node a download from the registry. Content that was
requested once has the lowest rank, and is deleted first.

Times are in seconds by the bucket's clock, sizes in bytes.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from .decaying_count import DecayingCount
from .eviction import Eviction, Reason
from .retention import weight

_STEP_SECONDS = 3 * 3600.0
"""Resolution of the clock's history. A blob that was requested in between gets the earlier, lower value."""


@dataclass(frozen=True, slots=True)
class RankClock:
    """The policy's clock: `steps` are its values and the times from which they hold, both ascending."""

    steps: tuple[tuple[float, float], ...] = ()

    @property
    def value(self) -> float:
        """The present value."""
        return self.steps[-1][1] if self.steps else 0.0

    def at(self, time: float) -> float:
        """Return the value at a time; the oldest known one for times before the history."""
        if not self.steps:
            return 0.0
        return self.steps[max(0, bisect_right(self.steps, (time, inf)) - 1)][1]

    def risen(self, value: float, now: float, kept_seconds: float) -> "RankClock":
        """Return a clock that has this value from now on, if it is higher, and the history of `kept_seconds`."""
        if value <= self.value:
            return self
        steps = list(self.steps) or [(now - kept_seconds, 0.0)]
        if len(steps) > 1 and now - steps[-2][0] < _STEP_SECONDS:
            steps.pop()
        if now <= steps[-1][0]:  # the clock of another sweeper was ahead
            now = steps[-1][0]
            steps.pop()
        steps.append((now, value))
        first = max(0, bisect_right(steps, (now - kept_seconds, inf)) - 1)
        return RankClock(tuple(steps[first:]))


class SummedCounts:
    """The sums of the nodes' counts of requests, by `short_digest`."""

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life
        self._counts: dict[int, DecayingCount] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: int, count: float, last: float) -> None:
        """Add the count of one node, which is as of its last request."""
        known = self._counts.get(key)
        added = DecayingCount(count, last)
        if known is not None:
            later = max(known.last, last)
            added = DecayingCount(known.at(later, self.half_life) + added.at(later, self.half_life), later)
        self._counts[key] = added

    def items(self) -> tuple[tuple[int, DecayingCount], ...]:
        """Return all sums."""
        return tuple(self._counts.items())

    def get(self, key: int) -> DecayingCount | None:
        """Return the sum, as of the last request to any node."""
        return self._counts.get(key)


def short_digest(hex: str) -> int:
    """Return the first 64 bits of a digest, which name content in counts; a collision would add two counts."""
    return int(hex[:16], 16)


@dataclass(slots=True)
class BucketPlan:
    """Chooses the blobs to delete. Each blob is added once, then `choose` is called once.

    Only the lowest ranks are kept, as many as add up to `most` bytes: buckets have millions of blobs.
    """

    now: float
    counts: SummedCounts
    clock: RankClock
    expire_after: float
    most: float = inf
    idle: list[Eviction[str]] = field(default_factory=list)
    """Blobs that were not requested for `expire_after` seconds."""
    _kept_bytes: int = 0
    _lowest: list[tuple[float, float, str, int, float]] = field(default_factory=list)
    """A heap with the highest rank first: minus the rank, minus the last request, key, size, requests until then."""

    def add(self, key: str, digest: int, size: int, modified: float) -> None:
        """Add a blob; `digest` is its `short_digest`, `modified` the time of its upload."""
        count = self._count(digest, modified)
        rank = self.clock.at(count.last) + count.count / weight(size)
        if self.now - count.last >= self.expire_after:
            self.idle.append(self._eviction(key, size, rank, count, Reason.IDLE))
            return
        heappush(self._lowest, (-rank, -count.last, key, size, count.count))
        self._kept_bytes += size
        while self._lowest and self._kept_bytes - self._lowest[0][3] >= self.most:
            self._kept_bytes -= heappop(self._lowest)[3]

    def is_requested(self, digest: int) -> bool:
        """Whether content was requested in the last `expire_after` seconds, as far as the nodes' counts show it."""
        count = self.counts.get(digest)
        return count is not None and self.now - count.last < self.expire_after

    def choose(self, excess: int) -> list[Eviction[str]]:
        """Return blobs of `excess` bytes or more, the lowest rank first, and let the clock rise to the highest of them.

        They are fewer where all that were kept do not suffice.
        """
        chosen: list[Eviction[str]] = []
        highest = self.clock.value
        for minus_rank, minus_last, key, size, requests in sorted(self._lowest, reverse=True):
            if excess <= 0:
                break
            excess -= size
            count = DecayingCount(requests, -minus_last)
            chosen.append(self._eviction(key, size, -minus_rank, count, Reason.SPACE))
            highest = max(highest, -minus_rank)
        self.clock = self.clock.risen(highest, self.now, self.expire_after)
        return chosen

    def _count(self, digest: int, modified: float) -> DecayingCount:
        """Return the count as of the last request. An upload is the result of a request."""
        count = self.counts.get(digest)
        if count is None:
            return DecayingCount(1.0, modified)
        if count.last >= modified:
            return count
        return DecayingCount(max(1.0, count.at(modified, self.counts.half_life)), modified)

    def _eviction(self, key: str, size: int, rank: float, count: DecayingCount, reason: Reason) -> Eviction[str]:
        requests = count.at(self.now, self.counts.half_life)
        return Eviction(key, size, reason, rank - self.clock.value, requests, self.now - count.last)
