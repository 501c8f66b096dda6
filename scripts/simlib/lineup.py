"""Which policies there are, by name, and where a rival comes from."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hubcache.decide.retention import Retention

from .policies import Belady, Frequency, Infinite, Lru, Policy, Ranked, S3Fifo
from .trace import Trace

type Maker = Callable[[Trace, int], Policy]
"""Makes a policy for a trace and a capacity in bytes."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A policy that can be simulated."""

    name: str
    about: str
    make: Maker
    bound: bool = False
    """Whether it is no rival but a bound of what is possible."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Parameters of the project's policy, as its options have them."""

    half_life: float = 7 * 86400.0
    expire_after: float = 30 * 86400.0
    admit_after: int = 2


class External:
    """A policy of libCacheSim."""

    def __init__(self, library: Any, name: str, trace: Trace, capacity: int) -> None:
        self.written = 0
        self._cache = getattr(library, name)(capacity, hashpower=18)
        self._request = library.Request()
        self._request.op = library.ReqOp.OP_GET
        self._request.valid = True

    def request(self, at: int, now: float, key: int, size: int) -> bool:
        request = self._request
        request.obj_id, request.obj_size, request.clock_time = key, size, int(now)
        hit: bool = self._cache.get(request)
        if not hit and self._cache.find(request, False) is not None:
            self.written += size
        return hit


EXTERNAL = {"lru": "LRU", "lfu": "LFU", "gdsf": "GDSF", "s3-fifo": "S3FIFO"}
"""What libCacheSim has. Its size-aware Belady looks at 128 objects drawn by chance; ours, at all of them."""


def libcachesim() -> Any:
    """The library, or None where it is not installed."""
    try:
        return importlib.import_module("libcachesim")
    except ImportError:
        return None


def lineup(settings: Settings, library: Any) -> list[Entrant]:
    """All policies; rivals from `library` where it has them, unless it is None."""

    def ours(admit_after: int) -> Maker:
        return lambda _, capacity: Frequency(
            capacity, Retention(settings.half_life, settings.expire_after, admit_after)
        )

    def rival(name: str, make: Callable[[int], Policy]) -> Maker:
        if library is None:
            return lambda _, capacity: make(capacity)
        return lambda trace, capacity: External(library, EXTERNAL[name], trace, capacity)

    asked = f"once the store is full, from request {settings.admit_after}"
    return [
        Entrant("infinite", "stores everything for ever", lambda _, __: Infinite(), bound=True),
        Entrant("belady", "knows the future", lambda trace, capacity: Belady(capacity, trace), bound=True),
        Entrant("hubcache", f"the project's; {asked}", ours(settings.admit_after)),
        Entrant("hubcache-1", "the project's; from the first request", ours(1)),
        Entrant("gdsf", "GreedyDual-Size-Frequency", rival("gdsf", _gdsf)),
        Entrant("s3-fifo", "three FIFO queues", rival("s3-fifo", S3Fifo)),
        Entrant("lru", "least recently used goes", rival("lru", Lru)),
        Entrant("lfu", "least frequently used goes", rival("lfu", _lfu)),
    ]


def _gdsf(capacity: int) -> Policy:
    return Ranked(capacity, lambda clock, count, size: clock + count / max(1, size))


def _lfu(capacity: int) -> Policy:
    return Ranked(capacity, lambda _, count, __: count)
