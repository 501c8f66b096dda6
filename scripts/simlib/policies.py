"""Cache policies: that of hubcache, from the module that the store uses, and short implementations of others.

A policy gets one request after the other and returns whether it is a hit. Only Belady's policy knows future requests.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

from hubcache.decide.retention import Retention

from .trace import Trace

DAY = 86400.0


class Policy(Protocol):
    """A simulated cache."""

    written: int
    """Bytes that were stored so far."""

    def request(self, index: int, now: float, key: int, size: int) -> bool:
        """Whether the request at `index` of the trace is a hit; `now` in seconds, `size` in bytes."""
        ...


class Hubcache:
    """Hubcache's policy: uses `hubcache.decide.retention` as the store does, without a disk."""

    def __init__(self, capacity: int, retention: Retention[int]) -> None:
        self.retention = retention
        self.written = 0
        self._capacity = capacity
        self._cleaned: float | None = None

    def request(self, index: int, now: float, key: int, size: int) -> bool:
        retention = self.retention
        self._clean(now)
        retention.record_request(key, now)
        if key in retention:
            return True
        if size <= self._capacity:
            decision = retention.admit(key, size, now, self._capacity - retention.bytes, _never)
            if decision.refusal is None:
                retention.record_stored(key, size, now)
                self.written += size
        return False

    def _clean(self, now: float) -> None:
        """Expire content once for each day that passed since the last request."""
        self._cleaned = now if self._cleaned is None else self._cleaned
        while self._cleaned + DAY <= now:
            self._cleaned += DAY
            while self.retention.evict_idle(self._cleaned, _never):
                pass
            self.retention.forget_absent(self._cleaned)


def _never(_: int) -> bool:
    return False


class Infinite:
    """Stores everything, without a limit."""

    def __init__(self) -> None:
        self.written = 0
        self._stored: set[int] = set()

    def request(self, index: int, now: float, key: int, size: int) -> bool:
        if key in self._stored:
            return True
        self._stored.add(key)
        self.written += size
        return False


class Lru:
    """Evicts the least recently used object."""

    def __init__(self, capacity: int) -> None:
        self.written = 0
        self._free = capacity
        self._capacity = capacity
        self._stored: OrderedDict[int, int] = OrderedDict()

    def request(self, index: int, now: float, key: int, size: int) -> bool:
        if key in self._stored:
            self._stored.move_to_end(key)
            return True
        if size <= self._capacity:
            while self._free < size:
                self._free += self._stored.popitem(last=False)[1]
            self._stored[key] = size
            self._free -= size
            self.written += size
        return False


class Ranked:
    """Evicts the object with the lowest rank, and among equal ranks the least recently used.

    `rank` computes a rank from the clock (the rank of the last evicted object), the number of requests since the object
    was stored, and its size in bytes.
    """

    def __init__(self, capacity: int, rank: Callable[[float, int, int], float]) -> None:
        self.written = 0
        self._rank = rank
        self._clock = 0.0
        self._capacity = capacity
        self._free = capacity
        self._stored: dict[int, tuple[int, int, int]] = {}  # requests, size, index of the last request
        self._heap: list[tuple[float, int, int]] = []

    def request(self, index: int, now: float, key: int, size: int) -> bool:
        count = self._stored[key][0] if key in self._stored else 0
        if not count:
            if size > self._capacity:
                return False
            while self._free < size:
                rank, last, victim = heappop(self._heap)
                if victim in self._stored and self._stored[victim][2] == last:
                    self._clock = rank
                    self._free += self._stored.pop(victim)[1]
            self._free -= size
            self.written += size
        self._stored[key] = (count + 1, size, index)
        heappush(self._heap, (self._rank(self._clock, count + 1, size), index, key))
        return count > 0


class S3Fifo:
    """S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).

    It has a small queue (10 % of the capacity), a main queue, and a ghost queue with the keys that were evicted from
    the small queue. An object that is requested twice more while in the small queue moves to the main queue.
    """

    def __init__(self, capacity: int) -> None:
        self.written = 0
        self._small_size = capacity // 10
        self._main_size = capacity - self._small_size
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._used = [0, 0]
        self._stored: dict[int, tuple[int, int]] = {}  # requests (at most 3) and size
        self._ghost: OrderedDict[int, int] = OrderedDict()
        self._ghost_used = 0

    def request(self, index: int, now: float, key: int, size: int) -> bool:
        if key in self._stored:
            self._stored[key] = (min(3, self._stored[key][0] + 1), size)
            return True
        capacity = self._small_size + self._main_size
        to_main = key in self._ghost
        if to_main:
            self._ghost_used -= self._ghost.pop(key)
        if size > (self._main_size if to_main else self._small_size):
            return False
        while sum(self._used) + size > capacity:
            self._evict()
        (self._main if to_main else self._small).append(key)
        self._used[to_main] += size
        self._stored[key] = (0, size)
        self.written += size
        return False

    def _evict(self) -> None:
        if self._small and (self._used[0] > self._small_size or not self._main):
            key = self._small.popleft()
            count, size = self._stored[key]
            self._used[0] -= size
            if count >= 2:
                self._stored[key] = (0, size)
                self._main.append(key)
                self._used[1] += size
                return
            del self._stored[key]
            self._ghost[key] = size
            self._ghost_used += size
            while self._ghost_used > self._main_size:
                self._ghost_used -= self._ghost.popitem(last=False)[1]
        else:
            key = self._main.popleft()
            count, size = self._stored[key]
            if count:
                self._stored[key] = (count - 1, size)
                self._main.append(key)
            else:
                del self._stored[key]
                self._used[1] -= size


class Belady:
    """Knows future requests: evicts the object with the highest product of size and distance to its next request.

    An object is not stored if it will not be requested again, or if it would be evicted itself. With objects of
    different sizes this is not the optimum, which is hard to compute.
    """

    def __init__(self, capacity: int, trace: Trace) -> None:
        self.written = 0
        self._capacity = capacity
        self._free = capacity
        self._next = trace.next_uses()
        self._end = len(trace)
        self._stored: dict[int, tuple[int, int]] = {}  # next request and size

    def request(self, index: int, now: float, key: int, size: int) -> bool:
        hit = key in self._stored
        following = self._next[index]
        if following == self._end or size > self._capacity:
            if hit:
                self._free += self._stored.pop(key)[1]
            return hit
        if hit:
            self._stored[key] = (following, size)
            return True
        if self._free < size:
            self._make_room(index, (following - index) * size, size)
        if self._free >= size:
            self._stored[key] = (following, size)
            self._free -= size
            self.written += size
        return False

    def _make_room(self, index: int, cost: int, needed: int) -> None:
        heap = [((index - following) * size, size, key) for key, (following, size) in self._stored.items()]
        heapify(heap)
        freed, victims = self._free, []
        while freed < needed and heap and -heap[0][0] > cost:
            _, size, key = heappop(heap)
            victims.append(key)
            freed += size
        if freed >= needed:
            for key in victims:
                del self._stored[key]
            self._free = freed
