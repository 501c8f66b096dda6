"""Which tag is looked at next: a queue by due time, and for each registry one of what is due, by worth. Pure; seconds.

Where more is due than the budget allows, a tag that is worth twice as much goes before those that became due up to
`PATIENCE` seconds earlier. As time goes by, one that waits comes before any that becomes due later: none starves.
All operations take logarithmic time; an entry that is over is left where it is until its turn comes.
"""

import heapq
import itertools
import math

from .watched import Watched

PATIENCE = 60.0

type _Heap = list[tuple[float, int, Watched]]


class Schedule:
    """Entries of watched tags; a tag has one place at most, that which it got last."""

    def __init__(self) -> None:
        self._due: _Heap = []
        self._ready: dict[str, _Heap] = {}
        self._numbers = itertools.count(1)
        self._first = 1

    def __len__(self) -> int:
        """Entries, those included that are over."""
        return len(self._due) + sum(map(len, self._ready.values()))

    def ready(self, host: str) -> int:
        """Entries of a registry that are due."""
        return len(self._ready.get(host, ()))

    def has(self, watched: Watched) -> bool:
        """Whether a tag has a place."""
        return watched.place >= self._first

    def clear(self) -> None:
        """Nothing has a place any more."""
        self._first = next(self._numbers)
        self._due.clear()
        self._ready.clear()

    def put(self, watched: Watched, due: float) -> None:
        """Let a tag be due at this time, and no other."""
        watched.place = next(self._numbers)
        heapq.heappush(self._due, (due, watched.place, watched))

    @staticmethod
    def drop(watched: Watched) -> None:
        """Let a tag never be due."""
        watched.place = 0

    def ripen(self, now: float, lifetime: float, limit: int) -> bool:
        """Sort what became due by worth, `limit` entries at most; whether there are more of them."""
        for _ in range(limit):
            if not self._due or self._due[0][0] > now:
                return False
            due, place, watched = heapq.heappop(self._due)
            if watched.place == place:
                rank = due - PATIENCE * math.log2(max(watched.worth(now, lifetime), 2**-10))
                heapq.heappush(self._ready.setdefault(watched.host, []), (rank, place, watched))
        return bool(self._due) and self._due[0][0] <= now

    def take(self, host: str) -> Watched | None:
        """The tag of this registry that is to be looked at first, which has no place any more; None where the entry
        that came first is over."""
        _, place, watched = heapq.heappop(self._ready[host])
        if watched.place != place:
            return None
        self.drop(watched)
        return watched
