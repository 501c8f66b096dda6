"""When a tag changed, and when to validate it again. Pure; times are seconds since the epoch.

A tag changes when it points to another digest. How often it does so is estimated as in Cho and Garcia-Molina,
"Estimating Frequency of Change" (2003): the number of changes, divided by the time in which they were observed. The
interval between two validations is a tenth of the mean time between changes, so that about one validation in ten finds
a change; for a tag that never changed this is the heuristic of RFC 9111 section 4.2.2, a tenth of its age. Rejected: to
double the interval after each validation without a change, which discards within a day the observations of a month.
"""

import cmath
import json
import math
from dataclasses import dataclass
from typing import Self

MAX_CHANGES = 8
"""Number of latest changes that are remembered: a week of nightly builds."""

LONGEST_WAIT = 6 * 3600.0
"""Longest interval between two validations, in seconds."""

_FRACTION = 0.1
"""The interval between validations, as a fraction of the mean time between changes."""

_DAY = 86400.0
_PATTERN_CHANGES = 3
_PATTERN_INTERVAL = _DAY / 2
"""Mean seconds between changes above which the time of day can be meaningful."""

_AGREEMENT = 0.9
"""Minimum length of the mean of the changes' directions on a 24-hour clock face to count as a pattern: they are within
some two hours of each other (1 = all at the same second of the day)."""

_SAME_CHANGE = 600.0
"""Seconds within which two validations may find the same change."""

_SPREAD = (600.0, 7200.0)
"""Limits of the spread of a pattern, in seconds."""

_VALIDATIONS_BEFORE = 6
"""Validations in the first half of the time in which a change is expected."""


@dataclass(frozen=True, slots=True)
class DailyPattern:
    """A tag changes every day at this second of the day (UTC), plus or minus `spread` seconds."""

    second: float
    spread: float

    def window_start(self, after: float) -> float:
        """Return the start of the first time window, around the expected change, that ends after `after`."""
        days = math.floor((after - self.spread - self.second) / _DAY) + 1
        return days * _DAY + self.second - self.spread


@dataclass(frozen=True, slots=True)
class TagChanges:
    """The last changes of a tag, which is observed since `since`."""

    since: float
    times: tuple[float, ...] = ()

    def with_change(self, after: float, found: float) -> Self:
        """Add a change that happened after `after`, when the tag was last seen unchanged, and before `found`."""
        earliest = max(after, self.since, *self.times[-1:])
        return type(self)(self.since, (*self.times, (min(earliest, found) + found) / 2)[-MAX_CHANGES:])

    def mean_interval(self, now: float) -> float:
        """Return the mean seconds between changes; without a change, the seconds since observation began."""
        oldest = self.times[0] if len(self.times) == MAX_CHANGES else self.since
        return max(0.0, now - oldest) / max(1, len(self.times))

    def wait(self, now: float) -> float:
        """Return the seconds after a validation at which another one is worthwhile."""
        return min(_FRACTION * self.mean_interval(now), LONGEST_WAIT)

    def daily_pattern(self) -> DailyPattern | None:
        """Return the time of day at which the tag changes, if it changes at about the same time every day."""
        count = len(self.times)
        if count < _PATTERN_CHANGES or self.times[-1] - self.times[0] < _PATTERN_INTERVAL * (count - 1):
            return None
        mean = sum(cmath.exp(2j * math.pi * time / _DAY) for time in self.times) / count
        if abs(mean) < _AGREEMENT:
            return None
        deviation = math.sqrt(-2 * math.log(min(1.0, abs(mean)))) * _DAY / (2 * math.pi)
        spread = min(max(2 * deviation, _SPREAD[0]), _SPREAD[1])
        return DailyPattern(cmath.phase(mean) % (2 * math.pi) * _DAY / (2 * math.pi), spread)

    def next_validation(self, validated_at: float, now: float, min_interval: float) -> float:
        """Return when to validate the tag again after `validated_at`, at least `min_interval` seconds later. Around the
        time of day at which the tag changes the intervals are shorter, until it has changed."""
        ordinary = validated_at + max(self.wait(now), min_interval)
        pattern = self.daily_pattern()
        if pattern is None:
            return ordinary
        start = pattern.window_start(validated_at)
        if self.times[-1] >= start:
            start += _DAY
        return min(ordinary, max(start, validated_at + max(pattern.spread / _VALIDATIONS_BEFORE, min_interval)))

    def change_probability(self, validated_at: float, now: float) -> float:
        """Return the approximate probability that the tag changed since `validated_at`."""
        pattern = self.daily_pattern()
        if pattern is not None and self.times[-1] < pattern.window_start(now) <= now:
            return 1.0
        if not self.times:
            return 0.0
        return min(1.0, max(0.0, now - validated_at) / max(1.0, self.mean_interval(now)))

    def merged(self, later: Self | None) -> Self:
        """Add the changes that were observed later, except those that are the same as stored ones."""
        if later is None:
            return self
        last = max(self.times, default=-math.inf) + _SAME_CHANGE
        new = (time for time in later.times if time > last)
        return type(self)(self.since, (*self.times, *new)[-MAX_CHANGES:])

    def encode(self) -> str:
        """Return JSON text."""
        return json.dumps([self.since, *self.times])

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what `encode` encoded; raises `ValueError` or `TypeError` for anything else."""
        since, *times = map(float, json.loads(text))
        return cls(since, tuple(times[-MAX_CHANGES:]))
