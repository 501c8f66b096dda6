"""Whether a tag is worth a look at its registry before a client asks, when, and how much. Pure; seconds.

A look is worth something in two cases. *Somebody asks within the lifetime that it begins*: that client need not wait
for the registry. The expectation comes from requests that count half after some lifetimes; each look that nobody made
use of halves it, too, so that a tag which nobody asks for any more costs a look or two. *The tag moved*: its content
can be fetched before anybody wants it. That takes a tag that was seen to move, and that people asked for within a day.
"""

import math
import zlib
from dataclasses import dataclass

from ..oci.digest import Digest
from .moves import Moves

OFTEN = 3.0
"""Requests (decayed) from which on a tag is looked at ahead: it is then asked for in two of five lifetimes."""

CONSTANTLY = 16.0
"""Requests from which on it is asked for in nine of ten lifetimes. A look ahead replaces a client's own then, and so
costs the registry nothing, however long the tag did not move."""

_HALF_LIFE = 5.0
"""In lifetimes: after so many, a request counts half."""

_DAILY_HALF_LIFE = 86400.0
_FETCH_IS_WORTH = 10.0
"""A pull that finds the layers here, in requests that need not wait for a validation."""


@dataclass(slots=True, eq=False)
class WatchedTag:
    """One tag as one kind of client asks for it."""

    host: str
    repository: str
    tag: str
    negotiation: str
    since: float
    """When it was first asked for."""
    asked_at: float
    requests: float = 0.0
    """As of `asked_at`."""
    daily: float = 0.0
    """The same, with a longer memory."""
    unused: int = 0
    """Looks since somebody asked."""
    digest: Digest | None = None
    validated_at: float = 0.0
    moves: Moves | None = None
    """None as long as nothing is known, which is so of most."""
    tried: Digest | None = None
    """What was fetched ahead last, or could not be: that is tried once."""
    is_busy: bool = False
    """Whether somebody is looking at it."""
    is_forgotten: bool = False
    is_read: bool = False
    """Whether `moves` has what is stored of earlier runs."""
    place: int = 0
    """The number of its last entry in the schedule."""
    ranked: float = 0.0
    """`requests` as they were when it got its place."""

    def asked(self, now: float, lifetime: float) -> None:
        """A client asked for it."""
        self.daily = _decayed(self.daily, now - self.asked_at, _DAILY_HALF_LIFE) + 1.0
        self.requests = _decayed(self.requests, now - self.asked_at, _HALF_LIFE * lifetime) + 1.0
        self.asked_at = now
        self.unused = 0

    def expected(self, now: float, lifetime: float) -> float:
        """The measure of how many requests are to be expected: those of the last lifetimes, unless nobody comes."""
        return _decayed(self.requests, now - self.asked_at, _HALF_LIFE * lifetime) / (1 << min(self.unused, 30))

    def seen(self, digest: Digest | None, at: float) -> None:
        """The registry told what the tag is."""
        if digest is not None and self.digest not in (None, digest):
            self.moves = (self.moves or Moves(self.since)).moved(self.validated_at, at)
        self.digest = digest if digest is not None else self.digest
        self.validated_at = at

    def next_look(self, now: float, lifetime: float, lead: float) -> float | None:
        """When a look is worth while, `lead` seconds or more before the lifetime's end; None when none is."""
        times = []
        expected = self.expected(now, lifetime)
        if expected >= OFTEN:
            wait = lifetime - lead * (1.0 + self._spread())
            if expected < CONSTANTLY:
                wait = max(wait, (self.moves or Moves(self.since)).wait(now))
            times.append(self.validated_at + wait)
        if self.moves and self.moves.times and _decayed(self.daily, now - self.asked_at, _DAILY_HALF_LIFE) >= OFTEN:
            times.append(self.moves.next_look(self.validated_at, now, lifetime - lead * (1.0 + self._spread())))
        return min(times, default=None)

    def worth(self, now: float, lifetime: float) -> float:
        """How much a look is worth now, in requests that need not wait."""
        daily = _decayed(self.daily, now - self.asked_at, _DAILY_HALF_LIFE)
        chance = self.moves.chance(self.validated_at, now) if self.moves else 0.0
        return self.expected(now, lifetime) + _FETCH_IS_WORTH * chance * daily

    def _spread(self) -> float:
        """Always the same for a tag, another for each: what is asked for together is not looked at together."""
        return zlib.crc32(f"{self.host}\n{self.repository}\n{self.tag}\n{self.negotiation}".encode()) / 2**32


def _decayed(count: float, seconds: float, half_life: float) -> float:
    """A clock that went back makes nothing more popular."""
    return count * math.exp2(-max(0.0, seconds) / half_life)
