"""The policies that are compared, by name."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hubcache.decide.retention import Retention

from .policies import Belady, Hubcache, Infinite, Lru, Policy, Ranked, S3Fifo
from .trace import Trace

type Maker = Callable[[Trace, int], Policy]
"""Creates a policy for a trace and a capacity in bytes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that can be simulated."""

    name: str
    about: str
    make: Maker
    bound: bool = False
    """Whether it is a reference that no real cache can implement."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Parameters of hubcache's policy, named after its options; times in seconds."""

    half_life: float = 7 * 86400.0
    expire_after: float = 30 * 86400.0
    admit_after: int = 2


class LibCacheSimPolicy:
    """A policy of libCacheSim."""

    def __init__(self, library: Any, name: str, trace: Trace, capacity: int) -> None:
        self.written = 0
        self._cache = getattr(library, name)(capacity, hashpower=18)
        self._request = library.Request()
        self._request.op = library.ReqOp.OP_GET
        self._request.valid = True

    def request(self, index: int, now: float, key: int, size: int) -> bool:
        request = self._request
        request.obj_id, request.obj_size, request.clock_time = key, size, int(now)
        hit: bool = self._cache.get(request)
        if not hit and self._cache.find(request, False) is not None:
            self.written += size
        return hit


LIBCACHESIM_NAMES = {"lru": "LRU", "lfu": "LFU", "gdsf": "GDSF", "s3-fifo": "S3FIFO"}
"""Policies that are taken from libCacheSim, with their names there.

Its size-aware Belady is not among them: it chooses from 128 random objects, and the one of this package from all."""


def libcachesim() -> Any:
    """The module of libCacheSim, or None if it is not installed."""
    try:
        return importlib.import_module("libcachesim")
    except ImportError:
        return None


def candidates(settings: Settings, library: Any) -> list[Candidate]:
    """All policies. Those in `LIBCACHESIM_NAMES` come from `library`, or from this package if it is None."""

    def hubcache(admit_after: int) -> Maker:
        return lambda _, capacity: Hubcache(capacity, Retention(settings.half_life, settings.expire_after, admit_after))

    def other(name: str, make: Callable[[int], Policy]) -> Maker:
        if library is None:
            return lambda _, capacity: make(capacity)
        return lambda trace, capacity: LibCacheSimPolicy(library, LIBCACHESIM_NAMES[name], trace, capacity)

    return [
        Candidate("infinite", "stores everything, without a limit", lambda _, __: Infinite(), bound=True),
        Candidate("belady", "knows future requests", lambda trace, capacity: Belady(capacity, trace), bound=True),
        Candidate(
            "hubcache",
            f"hubcache; when full, stores from request {settings.admit_after}",
            hubcache(settings.admit_after),
        ),
        Candidate("hubcache-1", "hubcache; stores from the first request", hubcache(1)),
        Candidate("gdsf", "GreedyDual-Size-Frequency", other("gdsf", _gdsf)),
        Candidate("s3-fifo", "three FIFO queues", other("s3-fifo", S3Fifo)),
        Candidate("lru", "evicts the least recently used", other("lru", Lru)),
        Candidate("lfu", "evicts the least frequently used", other("lfu", _lfu)),
    ]


def _gdsf(capacity: int) -> Policy:
    return Ranked(capacity, lambda clock, count, size: clock + count / max(1, size))


def _lfu(capacity: int) -> Policy:
    return Ranked(capacity, lambda _, count, __: count)
