"""When a tag moved, and when it is worth looking whether it moved again. Pure; times are seconds since the epoch.

The estimate is that of Cho and Garcia-Molina, "Estimating Frequency of Change" (2003): changes over the time in which
they were seen. A tenth of the mean time between changes is waited, so that about one look in ten finds one; for a tag
that never moved this is the heuristic of RFC 9111 section 4.2.2, a tenth of its age. Rejected: to double the interval
after each look without a change, which forgets in a day what a month of nights has shown.
"""

import cmath
import json
import math
from dataclasses import dataclass
from typing import Self

MAX_MOVES = 8
"""The last ones that are remembered: a week of nightly builds."""

LONGEST_WAIT = 6 * 3600.0

_PART = 0.1
_DAY = 86400.0
_HABIT_MOVES = 3
_HABIT_GAP = _DAY / 2
"""Mean seconds between moves from which on the hour of the day can tell something."""

_AGREEMENT = 0.9
"""Length of the mean of the moves' directions on a clock's face from which on they are a habit: they lie within some
two hours of each other (1 = the same second of the day)."""

_SAME_MOVE = 600.0
"""Seconds within which two questions about a tag may find one move."""

_SPREAD = (600.0, 7200.0)
_LOOKS_BEFORE = 6
"""Looks in the first half of the time in which a move is expected."""


@dataclass(frozen=True, slots=True)
class Habit:
    """A tag moves at this second of the day (UTC), give or take `spread` seconds."""

    second: float
    spread: float

    def begin(self, after: float) -> float:
        """When the first time of expectation begins that is not over at `after`."""
        days = math.floor((after - self.spread - self.second) / _DAY) + 1
        return days * _DAY + self.second - self.spread


@dataclass(frozen=True, slots=True)
class Moves:
    """The last moves of a tag that is watched since `since`."""

    since: float
    times: tuple[float, ...] = ()

    def moved(self, between: float, found: float) -> Self:
        """With a move that took place after `between`, when the tag was still where it had been, and before `found`."""
        earliest = max(between, self.since, *self.times[-1:])
        return type(self)(self.since, (*self.times, (min(earliest, found) + found) / 2)[-MAX_MOVES:])

    def mean_gap(self, now: float) -> float:
        """Seconds between moves; with none, for how long there has been none."""
        oldest = self.times[0] if len(self.times) == MAX_MOVES else self.since
        return max(0.0, now - oldest) / max(1, len(self.times))

    def wait(self, now: float) -> float:
        """Seconds after which another look is worth while."""
        return min(_PART * self.mean_gap(now), LONGEST_WAIT)

    def habit(self) -> Habit | None:
        """At what time of the day the tag moves, if it keeps to one."""
        count = len(self.times)
        if count < _HABIT_MOVES or self.times[-1] - self.times[0] < _HABIT_GAP * (count - 1):
            return None
        mean = sum(cmath.exp(2j * math.pi * time / _DAY) for time in self.times) / count
        if abs(mean) < _AGREEMENT:
            return None
        deviation = math.sqrt(-2 * math.log(min(1.0, abs(mean)))) * _DAY / (2 * math.pi)
        spread = min(max(2 * deviation, _SPREAD[0]), _SPREAD[1])
        return Habit(cmath.phase(mean) % (2 * math.pi) * _DAY / (2 * math.pi), spread)

    def next_look(self, looked_at: float, now: float, shortest: float) -> float:
        """When to look again whether the tag moved, if somebody looked at `looked_at`; no sooner than after `shortest`
        seconds. At its hour more often, until it has moved."""
        ordinary = looked_at + max(self.wait(now), shortest)
        habit = self.habit()
        if habit is None:
            return ordinary
        begin = habit.begin(looked_at)
        if self.times[-1] >= begin:
            begin += _DAY
        return min(ordinary, max(begin, looked_at + max(habit.spread / _LOOKS_BEFORE, shortest)))

    def chance(self, looked_at: float, now: float) -> float:
        """How probable it is, roughly, that the tag moved since somebody looked."""
        habit = self.habit()
        if habit is not None and self.times[-1] < habit.begin(now) <= now:
            return 1.0
        if not self.times:
            return 0.0
        return min(1.0, max(0.0, now - looked_at) / max(1.0, self.mean_gap(now)))

    def joined(self, later: Self | None) -> Self:
        """These, as stored, and those that were seen since, some of which may be the same."""
        if later is None:
            return self
        last = max(self.times, default=-math.inf) + _SAME_MOVE
        news = (time for time in later.times if time > last)
        return type(self)(self.since, (*self.times, *news)[-MAX_MOVES:])

    def encode(self) -> str:
        """JSON text."""
        return json.dumps([self.since, *self.times])

    @classmethod
    def decode(cls, text: str) -> Self:
        """Inverse of `encode`; raises `ValueError` or `TypeError` for anything else."""
        since, *times = map(float, json.loads(text))
        return cls(since, tuple(times[-MAX_MOVES:]))
