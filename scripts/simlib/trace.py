"""A trace: requests for objects, ordered by time. Pure."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """Kind of an object."""

    MANIFEST = 0
    CONFIG = 1
    LAYER = 2


class Request(NamedTuple):
    """One request: time in seconds; key, size in bytes and kind of the object; and its pull, if known."""

    time: float
    key: str
    size: int
    kind: Kind
    pull: str | None


class TraceError(ValueError):
    """A trace cannot be read or generated. The message is for the user."""


@dataclass(slots=True)
class Trace:
    """Requests ordered by time, as columns.

    `keys[i]` is an index into `sizes` and `kinds`. `pulls[i]` is a number below `pull_count`, or -1 if not known.
    """

    name: str
    times: array[float] = field(default_factory=lambda: array("d"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    pulls: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    kinds: bytearray = field(default_factory=bytearray)
    pull_count: int = 0

    @classmethod
    def of(cls, name: str, requests: Iterable[Request]) -> "Trace":
        """Create a trace from requests in any order. An object has the size and kind of its first request."""
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
        """Bytes of all distinct objects that are requested: a cache of this size never evicts."""
        return sum(self.sizes[key] for key in set(self.keys))

    def next_uses(self) -> array[int]:
        """The index of the next request for the same object, for each request; the length of the trace if none."""
        following: dict[int, int] = {}
        uses = array("q", bytes(8 * len(self)))
        for index in range(len(self) - 1, -1, -1):
            key = self.keys[index]
            uses[index] = following.get(key, len(self))
            following[key] = index
        return uses

    def describe(self) -> str:
        """One line for the user."""
        days = (self.times[-1] - self.times[0]) / 86400 if len(self) else 0.0
        gigabytes = self.footprint() / 1e9
        traffic = sum(self.sizes[key] for key in self.keys) / 1e9
        return (
            f"{self.name}: {len(self):,} requests in {self.pull_count:,} pulls over {days:.1f} days, "
            f"{len(set(self.keys)):,} objects of {gigabytes:,.1f} GB, {traffic:,.1f} GB of traffic"
        )
