"""A count of requests that decays: each counts half after `half_life` seconds. Pure; `now` is an argument."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class DecayingCount:
    """`count` as of the time `last`, in seconds since the epoch."""

    count: float
    last: float

    def at(self, now: float, half_life: float) -> float:
        """Return the count at `now`; a clock that was set back does not increase it."""
        return float(self.count * 2.0 ** (-max(0.0, now - self.last) / half_life))

    def plus(self, now: float, half_life: float) -> Self:
        """Return the count with one more request, made at `now`."""
        return type(self)(self.at(now, half_life) + 1.0, now)
