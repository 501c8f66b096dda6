"""Which tag is looked at next: a queue by due time, and for each registry one of what is due, by worth. Pure; seconds.

Where more is due than the budget allows, a tag that is worth twice as much goes before those that became due up to
`PATIENCE` seconds earlier. As time goes by, one that waits comes before any that becomes due later: none starves.
All operations take logarithmic time; an entry that is over is left where it is until its turn comes.
"""

import heapq
import itertools
import math

from .watched_tag import WatchedTag

PATIENCE = 60.0
_LEAST_WORTH = 2.0**-10

type _Heap = list[tuple[float, int]]
"""Times (or ranks) and numbers: entries without references, which the garbage collector need not look at."""


class Schedule:
    """Entries of watched tags; a tag has one place at most, that which it got last."""

    def __init__(self) -> None:
        self._due: _Heap = []
        self._ready: dict[str, _Heap] = {}
        self._placed: dict[int, WatchedTag] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        """Entries, those included that are over."""
        return len(self._due) + sum(map(len, self._ready.values()))

    def ready(self, host: str) -> int:
        """Entries of a registry that are due."""
        return len(self._ready.get(host, ()))

    def has(self, watched: WatchedTag) -> bool:
        """Whether a tag has a place."""
        return watched.place in self._placed

    def clear(self) -> None:
        """Nothing has a place any more."""
        self._placed.clear()
        self._due.clear()
        self._ready.clear()

    def put(self, watched: WatchedTag, due: float) -> None:
        """Let a tag be due at this time, and no other."""
        self.drop(watched)
        watched.place = next(self._numbers)
        self._placed[watched.place] = watched
        heapq.heappush(self._due, (due, watched.place))

    def drop(self, watched: WatchedTag) -> None:
        """Let a tag never be due."""
        self._placed.pop(watched.place, None)

    def ripen(self, now: float, lifetime: float, limit: int) -> bool:
        """Sort what became due by worth, `limit` entries at most; whether there are more of them."""
        for _ in range(limit):
            if not self._due or self._due[0][0] > now:
                return False
            due, place = heapq.heappop(self._due)
            watched = self._placed.get(place)
            if watched is not None:
                rank = due - PATIENCE * math.log2(max(watched.worth(now, lifetime), _LEAST_WORTH))
                heapq.heappush(self._ready.setdefault(watched.host, []), (rank, place))
        return bool(self._due) and self._due[0][0] <= now

    def take(self, host: str) -> WatchedTag | None:
        """The tag of this registry that is to be looked at first, which has no place any more; None where the entry
        that came first is over."""
        _, place = heapq.heappop(self._ready[host])
        return self._placed.pop(place, None)
