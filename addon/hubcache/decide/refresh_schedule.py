"""The order in which tags are validated: a queue by due time, and for each registry a queue of due tags by benefit.
Pure; times in seconds.

Where more tags are due than the budget allows, a tag with twice the benefit goes before those that became due up to
`PATIENCE` seconds earlier. A tag that waits long enough therefore goes before all that become due later: none starves.
All operations take logarithmic time; an entry that was replaced stays in its queue until it reaches the front.
"""

import heapq
import itertools
import math
from collections.abc import Collection

from .watched_tag import WatchedTag

PATIENCE = 60.0
_LEAST_BENEFIT = 2.0**-10

type _Heap = list[tuple[float, int]]
"""Times (or ranks) and entry numbers, without references that the garbage collector would have to traverse."""


class Schedule:
    """Entries of watched tags. A tag has one valid entry at most, its last one."""

    def __init__(self) -> None:
        self._waiting: _Heap = []
        self._due: dict[str, _Heap] = {}
        self._entries: dict[int, WatchedTag] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        """Return the number of entries, replaced ones included."""
        return len(self._waiting) + sum(map(len, self._due.values()))

    def due(self, host: str) -> int:
        """Return the number of due entries of a registry, replaced ones included."""
        return len(self._due.get(host, ()))

    def has(self, watched: WatchedTag) -> bool:
        """Whether a tag is scheduled."""
        return watched.entry in self._entries

    def clear(self) -> None:
        """Remove all tags."""
        self._entries.clear()
        self._waiting.clear()
        self._due.clear()

    def retain(self, hosts: Collection[str]) -> None:
        """Remove the due tags of all other registries, which no check would take out."""
        for host in [host for host in self._due if host not in hosts]:
            for _, entry in self._due.pop(host):
                self._entries.pop(entry, None)

    def put(self, watched: WatchedTag, due: float) -> None:
        """Schedule a tag for this time, instead of the time it was scheduled for."""
        self.drop(watched)
        watched.entry = next(self._numbers)
        self._entries[watched.entry] = watched
        heapq.heappush(self._waiting, (due, watched.entry))

    def drop(self, watched: WatchedTag) -> None:
        """Remove a tag."""
        self._entries.pop(watched.entry, None)

    def collect_due(self, now: float, lifetime: float, limit: int) -> bool:
        """Rank the tags that became due by benefit, `limit` entries at most; return whether there are more."""
        for _ in range(limit):
            if not self._waiting or self._waiting[0][0] > now:
                return False
            due, entry = heapq.heappop(self._waiting)
            watched = self._entries.get(entry)
            if watched is not None:
                rank = due - PATIENCE * math.log2(max(watched.benefit(now, lifetime), _LEAST_BENEFIT))
                heapq.heappush(self._due.setdefault(watched.host, []), (rank, entry))
        return bool(self._waiting) and self._waiting[0][0] <= now

    def pop(self, host: str) -> WatchedTag | None:
        """Remove and return the first due tag of a registry; None when the first entry was replaced."""
        _, entry = heapq.heappop(self._due[host])
        return self._entries.pop(entry, None)
