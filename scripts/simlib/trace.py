"""A trace: who asked for what, in order. Pure."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What was asked for."""

    MANIFEST = 0
    CONFIG = 1
    LAYER = 2


class Request(NamedTuple):
    """One request: time in seconds, object, its size in bytes and kind, and the pull that it is part of, if known."""

    time: float
    key: str
    size: int
    kind: Kind
    pull: str | None


class TraceError(ValueError):
    """A trace that cannot be read or made; the text is for the user."""


@dataclass(slots=True)
class Trace:
    """Requests by time. `keys[i]` is a number below `len(sizes)`, `pulls[i]` one below `pull_count`, or -1."""

    name: str
    times: array[float] = field(default_factory=lambda: array("d"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    pulls: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    kinds: bytearray = field(default_factory=bytearray)
    pull_count: int = 0

    @classmethod
    def of(cls, name: str, requests: Iterable[Request]) -> "Trace":
        """From requests in any order. An object has the size and kind of its first request."""
        trace = cls(name)
        numbers: dict[str, int] = {}
        pulls: dict[str, int] = {}
        for request in sorted(requests, key=lambda one: one.time):
            key = numbers.get(request.key)
            if key is None:
                key = numbers[request.key] = len(numbers)
                trace.sizes.append(request.size)
                trace.kinds.append(request.kind)
            trace.times.append(request.time)
            trace.keys.append(key)
            trace.pulls.append(-1 if request.pull is None else pulls.setdefault(request.pull, len(pulls)))
        trace.pull_count = len(pulls)
        return trace

    def __len__(self) -> int:
        return len(self.keys)

    def footprint(self) -> int:
        """Bytes of all distinct objects that are asked for: the size of a store that needs no eviction."""
        return sum(self.sizes[key] for key in set(self.keys))

    def next_uses(self) -> array[int]:
        """For each request the number of the next one for the same object, or the length of the trace."""
        seen: dict[int, int] = {}
        uses = array("q", bytes(8 * len(self)))
        for at in range(len(self) - 1, -1, -1):
            key = self.keys[at]
            uses[at] = seen.get(key, len(self))
            seen[key] = at
        return uses

    def describe(self) -> str:
        """One line about it."""
        days = (self.times[-1] - self.times[0]) / 86400 if len(self) else 0.0
        gigabytes = self.footprint() / 1e9
        traffic = sum(self.sizes[key] for key in self.keys) / 1e9
        return (
            f"{self.name}: {len(self):,} requests in {self.pull_count:,} pulls over {days:.1f} days, "
            f"{len(set(self.keys)):,} objects of {gigabytes:,.1f} GB, {traffic:,.1f} GB of traffic"
        )
