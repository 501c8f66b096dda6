"""What is worth its room on the disk: what is asked for often, by its size, with age. Pure; `now` is an argument.

The policy is GreedyDual-Size-Frequency (Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
Caching Policy", HP Labs HPL-98-69R1, 1998) with changes that measured better on traces of registries: the count decays,
it is kept for content that is not stored too, and it is divided by the square root of the size, the middle between
most hits (the size, as GDSF has it) and most bytes (1). `scripts/simulate` measures it beside others, with this module.

* Every request halves the older ones by their age and adds one: `requests = requests * 2^(-age / half_life) + 1`.
* A resident's rank is written when it is asked for: `rank = clock + requests / sqrt(size in KiB)`, unless that is
  less than it has: to be asked for never does harm. (Measured: makes no difference to the hits.)
* Room is made from the lowest rank upwards, and only as long as the ranks are below the newcomer's. The clock goes
  up to the highest rank that lost, be it a victim's or the newcomer's: so what is not asked for falls behind, at the
  speed at which the store turns over, without a look at it.
* When the store is full a newcomer must have been asked for `admit_after` times, so that a scan displaces nothing.

**Time** here is the policy's own, in seconds, and only goes forward: each call adds what has passed since the last one,
but nothing when the clock went back, and at most `LONGEST_STEP` when it leapt. So no leap of the clock throws out
more than one idle day would, and time during which nobody could ask (the machine was off) does not count as idle.
Whoever uses this calls something at least every few hours.

What `make_room`, `admit`, `idle` and `purge` return is no longer a resident here: the caller removes it from the disk,
or takes it back with `stored`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, KeysView, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from math import inf, isfinite, sqrt

from .ranking import Place, Ranking

LONGEST_STEP = 86400.0
"""Seconds that pass at most between two calls, whatever the clock says."""

ROWS = 200_000
"""Rows of history kept of content that is not stored."""

type Row = tuple[int, float, float, float, bool]
"""What is known of one key, to be persisted: size, requests, last request (own time), rank, whether it is resident."""

type Clock = tuple[float, float, float | None]
"""What is known besides, to be persisted with the rows: clock of the ranks, own time, and `now` of the last call."""


class Reason(StrEnum):
    """Why something was removed."""

    SPACE = "space"
    IDLE = "idle"
    PURGED = "purged"


class Refusal(StrEnum):
    """Why there is no room for something."""

    RARE = "not asked for often enough"
    UNWANTED = "all that would have to go is asked for more"
    IN_USE = "all that is left is in use or pinned"


@dataclass(frozen=True, slots=True)
class Eviction[K]:
    """One removal and its explanation. `score` is how far the rank was above the clock (below 0: passed by it),
    `requests` the decayed count, `idle` the seconds since the last request.
    """

    key: K
    size: int
    reason: Reason
    score: float
    requests: float
    idle: float


@dataclass(frozen=True, slots=True)
class Room[K]:
    """Whether there is room; what has to go for it, the least wanted first."""

    victims: tuple[Eviction[K], ...] = ()
    refusal: Refusal | None = None


class _Resident[K]:
    """What is known of one key that is stored, and its place in the ranking."""

    __slots__ = ("last", "place", "requests", "size")

    def __init__(self, size: int, requests: float, last: float, place: Place[K] | None = None) -> None:
        self.size = size
        self.requests = requests
        self.last = last
        self.place = place


class Retention[K]:
    """The state of the policy. The parameters may be changed at any time and hold from then on.

    `half_life` in seconds, after which a request counts half; `expire_after` in seconds without a request, after which
    a resident is `idle` and an absent one forgotten; `admit_after` in requests; `history` in rows.
    """

    def __init__(
        self,
        half_life: float = 7 * 86400.0,
        expire_after: float = 30 * 86400.0,
        admit_after: int = 2,
        history: int = ROWS,
    ) -> None:
        self.half_life = half_life
        self.expire_after = expire_after
        self.admit_after = admit_after
        self.history = history
        self.bytes = 0
        self._clock = 0.0
        self._time = 0.0
        self._now: float | None = None
        self._residents: dict[K, _Resident[K]] = {}
        self._absent: OrderedDict[K, Row] = OrderedDict()  # the longest not asked for first, as far as is known
        self._ranking: Ranking[K] = Ranking()
        self._dirty: set[K] = set()

    # -- what happened ------------------------------------------------------------------------------------------------

    def requested(self, key: K, now: float) -> None:
        """Somebody asked for it, whether it is stored or not."""
        time = self._advance(now)
        self._dirty.add(key)
        known = self._residents.get(key)
        if known is not None:
            known.requests = self._decayed(known.requests, known.last, time) + 1.0
            known.last = time
            self._rank(key, known, time)
            return
        size, requests, last, _, _ = self._absent.get(key, _NEVER)
        expired = time - last >= self.expire_after
        self._absent[key] = _absent(size, (0.0 if expired else self._decayed(requests, last, time)) + 1.0, time)
        self._absent.move_to_end(key)
        self._bound_history()

    def stored(self, key: K, size: int, now: float) -> None:
        """It is stored, `size` bytes long. What was never asked for counts as asked for once: somebody did."""
        time = self._advance(now)
        known = self._residents.get(key)
        if known is None:
            _, requests, last, _, _ = self._absent.pop(key, _absent(size, 1.0, time))
            known = self._residents[key] = _Resident(size, requests, last)
        else:
            self.bytes -= known.size
        known.size = size
        self.bytes += size
        self._rank(key, known, time)
        self._dirty.add(key)

    def removed(self, key: K) -> None:
        """It is no longer stored; its history stays."""
        known = self._residents.pop(key, None)
        if known is None:
            return
        assert known.place is not None
        self._ranking.discard(known.place)
        self.bytes -= known.size
        self._absent[key] = _absent(known.size, known.requests, known.last)
        self._dirty.add(key)
        self._bound_history()

    # -- what to do ---------------------------------------------------------------------------------------------------

    def asked_enough(self, key: K, now: float) -> bool:
        """Whether it was asked for `admit_after` times: one time less never passes, and that many do as long as the
        older requests have not lost one whole request to decay.
        """
        return self.admit_after <= 0 or self.requests(key, now) > self.admit_after - 1

    def admit(self, key: K, size: int, now: float, free: int, keep: Callable[[K], bool]) -> Room[K]:
        """Whether to store `size` bytes of it, of which `free` need no eviction, and what has to go.

        To be called after `requested`. Whatever fits is welcome; else it must be asked for often enough, and more than
        what would have to go. What `keep` is true for is passed over: it is being sent or filled, or it is pinned.
        """
        if size <= free:
            return Room()
        if key in self._absent:
            _, requests, last, _, _ = self._absent[key]
            self._absent[key] = _absent(size, requests, last)
        if not self.asked_enough(key, now):
            return Room(refusal=Refusal.RARE)
        rank = self._clock + self.requests(key, now) / _weight(size)
        return self._walk(size - free, self._advance(now), keep, rank)

    def make_room(self, needed: int, now: float, keep: Callable[[K], bool]) -> Room[K]:
        """Free `needed` bytes whoever is asked for how much: the cap was lowered, or others fill the disk.

        With a refusal there is less to free than needed; the victims are then all that there is.
        """
        return self._walk(needed, self._advance(now), keep, inf)

    def idle(self, now: float, keep: Callable[[K], bool], most: int = 1000) -> list[Eviction[K]]:
        """Residents that nobody asked for in `expire_after`, at most so many at once. Looks at every resident."""
        time = self._advance(now)
        since = time - self.expire_after
        keys = [key for key, known in self._residents.items() if known.last <= since and not keep(key)]
        return [self._evict(key, Reason.IDLE, time) for key in keys[:most]]

    def purge(self, key: K, now: float) -> Eviction[K] | None:
        """Remove it because somebody wants it gone; None when it is not resident."""
        return self._evict(key, Reason.PURGED, self._advance(now)) if key in self._residents else None

    def forget(self, now: float) -> None:
        """Forget absent content that nobody asked for in `expire_after`, and rows beyond `history`. Looks at all."""
        since = self._advance(now) - self.expire_after
        gone = [key for key, (_, _, last, _, _) in self._absent.items() if last <= since]
        for key in gone:
            del self._absent[key]
        self._dirty.update(gone)
        self._bound_history()

    # -- what is known ------------------------------------------------------------------------------------------------

    def __contains__(self, key: K) -> bool:
        """Whether it is resident."""
        return key in self._residents

    def __len__(self) -> int:
        """How many are resident."""
        return len(self._residents)

    @property
    def residents(self) -> KeysView[K]:
        """All that is resident."""
        return self._residents.keys()

    @property
    def rows(self) -> int:
        """How many absent ones are remembered."""
        return len(self._absent)

    def requests(self, key: K, now: float) -> float:
        """How often it was asked for, decayed until `now`; 0 when nothing is known of it."""
        known = self._residents.get(key)
        if known is not None:
            return self._decayed(known.requests, known.last, self._at(now))
        _, requests, last, _, _ = self._absent.get(key, _NEVER)
        return self._decayed(requests, last, self._at(now))

    def score(self, key: K, now: float) -> float:
        """How far its rank is above the clock; for what is absent, how far it would be if it were stored now."""
        known = self._residents.get(key)
        if known is not None:
            assert known.place is not None
            return known.place[0] - self._clock
        return self.requests(key, now) / _weight(self._absent.get(key, _NEVER)[0])

    def _at(self, now: float) -> float:
        """Own time at `now`."""
        return self._time if self._now is None else self._time + min(max(0.0, now - self._now), LONGEST_STEP)

    def _advance(self, now: float) -> float:
        self._time = self._at(now)
        self._now = now
        return self._time

    def _bound_history(self) -> None:
        while len(self._absent) > self.history:
            self._dirty.add(self._absent.popitem(last=False)[0])

    def _decayed(self, requests: float, last: float, time: float) -> float:
        return float(requests * 2.0 ** ((last - time) / self.half_life))

    def _rank(self, key: K, known: _Resident[K], time: float) -> None:
        rank = self._clock + self._decayed(known.requests, known.last, time) / _weight(known.size)
        if known.place is not None:
            rank = max(rank, known.place[0])
            self._ranking.discard(known.place)
        known.place = self._ranking.add(key, rank)

    def _evict(self, key: K, reason: Reason, time: float) -> Eviction[K]:
        known = self._residents[key]
        assert known.place is not None
        score = known.place[0] - self._clock
        self.removed(key)
        requests = self._decayed(known.requests, known.last, time)
        return Eviction(key, known.size, reason, score, requests, time - known.last)

    def _walk(self, needed: int, time: float, keep: Callable[[K], bool], newcomer: float) -> Room[K]:
        """Choose victims below the newcomer's rank; a newcomer that gets less than it needs gets nothing."""
        chosen, last = list[K](), self._clock
        for rank, _, key in self._ranking:
            if needed <= 0:
                break
            if rank >= newcomer:
                self._clock = max(self._clock, newcomer)
                return Room(refusal=Refusal.UNWANTED)
            if not keep(key):
                needed -= self._residents[key].size
                chosen.append(key)
                last = max(last, rank)
        refusal = Refusal.IN_USE if needed > 0 else None
        if refusal and newcomer < inf:
            return Room(refusal=refusal)
        victims = tuple(self._evict(key, Reason.SPACE, time) for key in chosen)
        self._clock = last
        return Room(victims, refusal)

    # -- persistence --------------------------------------------------------------------------------------------------

    def dirty(self) -> set[K]:
        """Keys whose row changed since the last call. To be given back to `failed` when they could not be written."""
        dirty, self._dirty = self._dirty, set()
        return dirty

    def failed(self, keys: Iterable[K]) -> None:
        """These are still to be written."""
        self._dirty.update(keys)

    def clock(self) -> Clock:
        """To be persisted together with the rows."""
        return self._clock, self._time, self._now

    def row(self, key: K) -> Row | None:
        """To be persisted; None when nothing is known (any more): then the row is to be deleted."""
        known = self._residents.get(key)
        if known is not None:
            assert known.place is not None
            return known.size, known.requests, known.last, known.place[0], True
        return self._absent.get(key)

    def restore(self, clock: Clock | None, rows: Mapping[K, Row]) -> None:
        """Start from what was persisted, instead of what is known now. Then the caller tells where the disk differs,
        with `stored` and `removed`. Rows that make no sense are left out; a missing clock is taken from the lowest
        rank, where it is when a full store has just evicted.
        """
        residents: dict[K, Row] = {}
        absent: dict[K, Row] = {}
        for key, row in rows.items():
            size, requests, last, rank, resident = row
            if size >= 0 and requests >= 0 and isfinite(requests + last + rank):
                (residents if resident else absent)[key] = row
        if clock is None or not all(isfinite(part) for part in clock if part is not None):
            latest = max((last for _, _, last, _, _ in chain(absent.values(), residents.values())), default=0.0)
            clock = min((rank for _, _, _, rank, _ in residents.values()), default=0.0), latest, None
        self._clock, self._time, self._now = clock
        self._dirty = set()
        places = self._ranking.fill((key, rank) for key, (_, _, _, rank, _) in residents.items())
        self._residents = {
            place[2]: _Resident(size, requests, min(last, self._time), place)
            for place, (size, requests, last, _, _) in zip(places, residents.values(), strict=True)
        }
        self.bytes = sum(known.size for known in self._residents.values())
        self._absent = OrderedDict(sorted(absent.items(), key=lambda item: item[1][2]))
        for key, (size, requests, last, _, _) in reversed(self._absent.items()):
            if last <= self._time:
                break
            self._absent[key] = _absent(size, requests, self._time)
        self._bound_history()


def _absent(size: int, requests: float, last: float) -> Row:
    """The row of something that is not stored; it has no rank."""
    return size, requests, last, 0.0, False


_NEVER = _absent(0, 0.0, 0.0)
"""What is known of something that was never asked for."""


def _weight(size: int) -> float:
    """Square root of the size in KiB, rounded up."""
    return sqrt(max(1, (size + 1023) >> 10))
