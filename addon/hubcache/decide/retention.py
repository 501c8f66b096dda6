"""The retention policy: keeps what is requested often for its size, with decay. Pure; `now` is an argument.

The policy is GreedyDual-Size-Frequency (Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
Caching Policy", HP Labs HPL-98-69R1, 1998) with changes that measured better on traces of registries: the count decays,
it is kept for content that is not stored, too, and it is divided by the square root of the size, the middle between
most hits (the size, as in GDSF) and most bytes (1). `scripts/simulate` measures it beside others, with this module.

* Every request halves the older ones by their age and adds one: `requests = requests * 2^(-age / half_life) + 1`.
* The rank of stored content is updated when it is requested: `rank = clock + requests / sqrt(size in KiB)`, unless that
  is lower than its present rank: a request never lowers a rank. (By measurement this does not change the hits.)
* Content is evicted from the lowest rank upwards, and only while the ranks are below that of the new content. The clock
  rises to the highest rank of evicted content and of refused new content. So content without requests falls behind as
  fast as the store turns over, without an update of its rank.
* When the store is full, new content must have been requested `admit_after` times, so that a scan displaces nothing.

**Time** is the policy's own, in seconds, and only goes forward: each call adds the time since the last one, but nothing
when the clock was set back, and at most `MAX_STEP` when it jumped ahead. So no jump of the clock evicts more than one
idle day would, and time in which no client could make a request (the machine was off) does not count as idle. The
caller has to call something at least every few hours.

This module counts the content that `admit`, `evict`, `evict_idle` and `purge` return as removed: the caller removes it
from the disk, or reverts the count with `record_stored`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, KeysView, Mapping
from math import inf, sqrt

from .eviction import Decision, Eviction, Reason, Refusal
from .ranking import Entry, Ranking
from .retention_rows import Clock, Row, absent_row, usable_clock, usable_rows

MAX_STEP = 86400.0
"""Seconds that pass at most between two calls, whatever the clock says."""

MAX_ABSENT = 200_000
"""Digests of content that is not stored whose requests are remembered."""

_NEVER_REQUESTED = absent_row(0, 0.0, 0.0)


class _Stored[K]:
    """The state of one stored key, and its entry in the ranking."""

    __slots__ = ("entry", "last", "requests", "size")

    def __init__(self, size: int, requests: float, last: float, entry: Entry[K] | None = None) -> None:
        self.size = size
        self.requests = requests
        self.last = last
        self.entry = entry


class Retention[K]:
    """The state of the policy. The parameters may be changed at any time and hold from then on.

    `half_life` is in seconds, after which a request counts half; `expire_after` in seconds without a request, after
    which stored content is idle and absent content is forgotten; `admit_after` in requests; `max_absent` in digests.
    """

    def __init__(
        self,
        half_life: float = 7 * 86400.0,
        expire_after: float = 30 * 86400.0,
        admit_after: int = 2,
        max_absent: int = MAX_ABSENT,
    ) -> None:
        self.half_life = half_life
        self.expire_after = expire_after
        self.admit_after = admit_after
        self.max_absent = max_absent
        self.bytes = 0
        """Sum of the sizes of stored content."""
        self._clock = 0.0
        self._time = 0.0
        self._now: float | None = None
        self._stored: dict[K, _Stored[K]] = {}
        self._absent: OrderedDict[K, Row] = OrderedDict()  # in the order of the last request, as far as it is known
        self._ranking: Ranking[K] = Ranking()
        self._changed: set[K] = set()

    # -- events -------------------------------------------------------------------------------------------------------

    def record_request(self, key: K, now: float) -> None:
        """Count a request, whether the content is stored or not."""
        time = self._advance(now)
        self._changed.add(key)
        known = self._stored.get(key)
        if known is not None:
            known.requests = self._decayed(known.requests, known.last, time) + 1.0
            known.last = time
            self._rank(key, known, time)
            return
        size, requests, last, _, _ = self._absent.get(key, _NEVER_REQUESTED)
        expired = time - last >= self.expire_after
        self._absent[key] = absent_row(size, (0.0 if expired else self._decayed(requests, last, time)) + 1.0, time)
        self._absent.move_to_end(key)
        self._bound_absent()

    def record_stored(self, key: K, size: int, now: float) -> None:
        """Record that content of `size` bytes is stored. Without a known request it counts as requested once."""
        time = self._advance(now)
        known = self._stored.get(key)
        if known is None:
            _, requests, last, _, _ = self._absent.pop(key, absent_row(size, 1.0, time))
            known = self._stored[key] = _Stored(size, requests, last)
        else:
            self.bytes -= known.size
        known.size = size
        self.bytes += size
        self._rank(key, known, time)
        self._changed.add(key)

    def record_removed(self, key: K) -> None:
        """Record that content is no longer stored; its requests are remembered."""
        known = self._stored.pop(key, None)
        if known is None:
            return
        assert known.entry is not None
        self._ranking.discard(known.entry)
        self.bytes -= known.size
        self._absent[key] = absent_row(known.size, known.requests, known.last)
        self._changed.add(key)
        self._bound_absent()

    # -- decisions ----------------------------------------------------------------------------------------------------

    def is_admitted(self, key: K, now: float) -> bool:
        """Whether the content was requested `admit_after` times. One request less never suffices; `admit_after`
        requests do unless decay has reduced their count by a whole request.
        """
        return self.admit_after <= 0 or self.requests(key, now) > self.admit_after - 1

    def admit(self, key: K, size: int, now: float, free: int, is_protected: Callable[[K], bool]) -> Decision[K]:
        """Decide whether to store `size` bytes, of which `free` need no eviction, and what to evict for the others.

        To be called after `record_request`. Content that fits is always admitted; otherwise it must be requested often
        enough, and more often than the content that would be evicted. Content for which `is_protected` is true is never
        evicted.
        """
        if size <= free:
            return Decision()
        if key in self._absent:
            _, requests, last, _, _ = self._absent[key]
            self._absent[key] = absent_row(size, requests, last)
        if not self.is_admitted(key, now):
            return Decision(refusal=Refusal.RARE)
        rank = self._clock + self.requests(key, now) / weight(size)
        return self._choose(size - free, self._advance(now), is_protected, rank)

    def evict(self, needed: int, now: float, is_protected: Callable[[K], bool]) -> Decision[K]:
        """Free `needed` bytes, however often the content is requested: the cap was lowered, or others fill the disk.

        With a refusal there is less to free than needed; the victims are then everything that may be evicted.
        """
        return self._choose(needed, self._advance(now), is_protected, inf)

    def evict_idle(self, now: float, is_protected: Callable[[K], bool], limit: int = 1000) -> list[Eviction[K]]:
        """Evict content that was not requested for `expire_after` seconds, at most `limit` digests at once. This reads
        the state of all stored content."""
        time = self._advance(now)
        since = time - self.expire_after
        keys = [key for key, known in self._stored.items() if known.last <= since and not is_protected(key)]
        return [self._remove(key, Reason.IDLE, time) for key in keys[:limit]]

    def purge(self, key: K, now: float) -> Eviction[K] | None:
        """Evict one key for a reason that the policy does not know; None when it is not stored."""
        return self._remove(key, Reason.PURGED, self._advance(now)) if key in self._stored else None

    def forget_absent(self, now: float) -> None:
        """Forget absent content that was not requested for `expire_after` seconds, and any beyond `max_absent`. This
        reads the state of all absent content."""
        since = self._advance(now) - self.expire_after
        expired = [key for key, (_, _, last, _, _) in self._absent.items() if last <= since]
        for key in expired:
            del self._absent[key]
        self._changed.update(expired)
        self._bound_absent()

    # -- queries ------------------------------------------------------------------------------------------------------

    def __contains__(self, key: K) -> bool:
        """Whether content with this key is stored."""
        return key in self._stored

    def __len__(self) -> int:
        """Return how many keys are stored."""
        return len(self._stored)

    @property
    def stored(self) -> KeysView[K]:
        """The keys of stored content."""
        return self._stored.keys()

    @property
    def absent(self) -> int:
        """How many digests of absent content are remembered."""
        return len(self._absent)

    def requests(self, key: K, now: float) -> float:
        """Return the decayed count of requests at `now`; 0 when none is known."""
        known = self._stored.get(key)
        if known is not None:
            return self._decayed(known.requests, known.last, self._at(now))
        _, requests, last, _, _ = self._absent.get(key, _NEVER_REQUESTED)
        return self._decayed(requests, last, self._at(now))

    def idle(self, key: K, now: float) -> float | None:
        """Return the seconds since the last request at `now`; None when none is known."""
        known = self._stored.get(key)
        if known is None and key not in self._absent:
            return None
        last = self._absent[key][2] if known is None else known.last
        return self._at(now) - last

    def score(self, key: K, now: float) -> float:
        """Return how far the rank is above the clock; for absent content, how far it would be if it were stored now."""
        known = self._stored.get(key)
        if known is not None:
            assert known.entry is not None
            return known.entry[0] - self._clock
        return self.requests(key, now) / weight(self._absent.get(key, _NEVER_REQUESTED)[0])

    # -- internals ----------------------------------------------------------------------------------------------------

    def _at(self, now: float) -> float:
        """Return the policy's time at `now`."""
        return self._time if self._now is None else self._time + min(max(0.0, now - self._now), MAX_STEP)

    def _advance(self, now: float) -> float:
        self._time = self._at(now)
        self._now = now
        return self._time

    def _bound_absent(self) -> None:
        while len(self._absent) > self.max_absent:
            self._changed.add(self._absent.popitem(last=False)[0])

    def _decayed(self, requests: float, last: float, time: float) -> float:
        return float(requests * 2.0 ** ((last - time) / self.half_life))

    def _rank(self, key: K, known: _Stored[K], time: float) -> None:
        rank = self._clock + self._decayed(known.requests, known.last, time) / weight(known.size)
        if known.entry is not None:
            rank = max(rank, known.entry[0])
            self._ranking.discard(known.entry)
        known.entry = self._ranking.add(key, rank)

    def _remove(self, key: K, reason: Reason, time: float) -> Eviction[K]:
        known = self._stored[key]
        assert known.entry is not None
        score = known.entry[0] - self._clock
        self.record_removed(key)
        requests = self._decayed(known.requests, known.last, time)
        return Eviction(key, known.size, reason, score, requests, time - known.last)

    def _choose(self, needed: int, time: float, is_protected: Callable[[K], bool], new_rank: float) -> Decision[K]:
        """Evict `needed` bytes with ranks below `new_rank`, that of the new content. When there are not enough, nothing
        is evicted for new content."""
        chosen, last = list[K](), self._clock
        for rank, _, key in self._ranking:
            if needed <= 0:
                break
            if rank >= new_rank:
                self._clock = max(self._clock, new_rank)
                return Decision(refusal=Refusal.UNWANTED)
            if not is_protected(key):
                needed -= self._stored[key].size
                chosen.append(key)
                last = max(last, rank)
        refusal = Refusal.IN_USE if needed > 0 else None
        if refusal and new_rank < inf:
            return Decision(refusal=refusal)
        victims = tuple(self._remove(key, Reason.SPACE, time) for key in chosen)
        self._clock = last
        return Decision(victims, refusal)

    # -- persistence --------------------------------------------------------------------------------------------------

    def take_changed(self) -> set[K]:
        """Return the keys whose row changed since the last call. If they cannot be written, call `mark_changed`."""
        changed, self._changed = self._changed, set()
        return changed

    def mark_changed(self, keys: Iterable[K]) -> None:
        """Return these keys from the next `take_changed`, too."""
        self._changed.update(keys)

    def clock(self) -> Clock:
        """Return the clocks, to be persisted together with the rows."""
        return self._clock, self._time, self._now

    def row(self, key: K) -> Row | None:
        """Return the row to be persisted; None when the key is not known, and its row is to be deleted."""
        known = self._stored.get(key)
        if known is not None:
            assert known.entry is not None
            return known.size, known.requests, known.last, known.entry[0], True
        return self._absent.get(key)

    def restore(self, clock: Clock | None, rows: Mapping[K, Row]) -> None:
        """Replace the state by the persisted one. The caller then records where the disk differs from it, with
        `record_stored` and `record_removed`. Rows with impossible values are ignored, and such a clock is replaced.
        """
        stored, absent = usable_rows(rows)
        self._clock, self._time, self._now = usable_clock(clock, stored.values(), absent.values())
        self._changed = set()
        entries = self._ranking.fill((key, rank) for key, (_, _, _, rank, _) in stored.items())
        self._stored = {
            entry[2]: _Stored(size, requests, min(last, self._time), entry)
            for entry, (size, requests, last, _, _) in zip(entries, stored.values(), strict=True)
        }
        self.bytes = sum(known.size for known in self._stored.values())
        self._absent = OrderedDict(sorted(absent.items(), key=lambda item: item[1][2]))
        for key, (size, requests, last, _, _) in reversed(self._absent.items()):
            if last <= self._time:
                break
            self._absent[key] = absent_row(size, requests, self._time)
        self._bound_absent()


def weight(size: int) -> float:
    """Return the square root of the size in KiB, rounded up, by which a count of requests is divided."""
    return sqrt(max(1, (size + 1023) >> 10))
