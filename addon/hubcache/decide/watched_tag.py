"""Decides whether and when a tag is validated before a client asks, and the benefit of that. Pure; times in seconds.

A validation ahead of clients has a benefit in two cases. *A client asks within the lifetime that it begins*: the client
need not wait for the registry. How many will ask is estimated from earlier requests, each of which counts half after
some lifetimes; each validation that no client used halves the estimate, too, so that a tag that is no longer requested
costs one or two validations. *The tag changed*: its content can be prefetched. That takes a tag that was seen to
change, and that was requested within a day.
"""

import zlib
from dataclasses import dataclass

from ..oci.digest import Digest
from .decaying_count import DecayingCount
from .tag_changes import TagChanges

OFTEN = 3.0
"""Requests (decayed) from which on a tag is validated ahead: it is then requested in two of five lifetimes."""

CONSTANTLY = 16.0
"""Requests (decayed) from which on a tag is requested in nine of ten lifetimes. A validation ahead then replaces one on
behalf of a client, and so costs the registry nothing, even if the tag has not changed for long."""

_HALF_LIFE = 5.0
"""Half-life of a request, in lifetimes of a tag."""

_DAILY_HALF_LIFE = 86400.0
_PREFETCH_BENEFIT = 10.0
"""Benefit of a pull that finds its layers in the store, in requests that need not wait for a validation."""


@dataclass(slots=True, eq=False)
class WatchedTag:
    """One tag as requested with one content negotiation."""

    host: str
    repository: str
    tag: str
    negotiation: str
    since: float
    """When it was first requested."""
    requested_at: float
    requests: float = 0.0
    """Decayed count as of `requested_at`."""
    daily_requests: float = 0.0
    """The same with a half-life of a day."""
    unused_validations: int = 0
    """Validations since the last request."""
    digest: Digest | None = None
    validated_at: float = 0.0
    changes: TagChanges | None = None
    """None until a change of the tag was seen; most tags never change."""
    prefetch_tried: Digest | None = None
    """The digest whose prefetch was tried last; each digest is tried once."""
    is_validating: bool = False
    """Whether a validation is running."""
    is_dropped: bool = False
    """Whether the tag is no longer watched."""
    is_loaded: bool = False
    """Whether `changes` includes the changes that earlier processes stored."""
    entry: int = 0
    """The number of its last entry in the schedule."""
    scheduled_requests: float = 0.0
    """`requests` when it was last scheduled."""

    def count_request(self, now: float, lifetime: float) -> None:
        """Count a request by a client; `lifetime` is that of a tag."""
        self.daily_requests = self._daily_requests_at(now) + 1.0
        self.requests = self._requests_at(now, lifetime) + 1.0
        self.requested_at = now
        self.unused_validations = 0

    def expected_requests(self, now: float, lifetime: float) -> float:
        """Return a measure of the requests to expect: those of the last lifetimes, halved by each unused validation."""
        return self._requests_at(now, lifetime) / (1 << min(self.unused_validations, 30))

    def record_validation(self, digest: Digest | None, at: float) -> None:
        """Record which digest the registry returned for the tag; None when it returned none."""
        if digest is not None and self.digest not in (None, digest):
            self.changes = (self.changes or TagChanges(self.since)).with_change(self.validated_at, at)
        self.digest = digest if digest is not None else self.digest
        self.validated_at = at

    def next_validation(self, now: float, lifetime: float, lead: float) -> float | None:
        """Return when to validate the tag, at least `lead` seconds before its lifetime ends; None when not at all."""
        times = []
        expected = self.expected_requests(now, lifetime)
        if expected >= OFTEN:
            wait = lifetime - lead * (1.0 + self._spread())
            if expected < CONSTANTLY:
                wait = max(wait, (self.changes or TagChanges(self.since)).wait(now))
            times.append(self.validated_at + wait)
        if self.changes and self.changes.times and self._daily_requests_at(now) >= OFTEN:
            min_interval = lifetime - lead * (1.0 + self._spread())
            times.append(self.changes.next_validation(self.validated_at, now, min_interval))
        return min(times, default=None)

    def benefit(self, now: float, lifetime: float) -> float:
        """Return the benefit of a validation now, in requests that need not wait."""
        probability = self.changes.change_probability(self.validated_at, now) if self.changes else 0.0
        return self.expected_requests(now, lifetime) + _PREFETCH_BENEFIT * probability * self._daily_requests_at(now)

    def _requests_at(self, now: float, lifetime: float) -> float:
        return DecayingCount(self.requests, self.requested_at).at(now, _HALF_LIFE * lifetime)

    def _daily_requests_at(self, now: float) -> float:
        return DecayingCount(self.daily_requests, self.requested_at).at(now, _DAILY_HALF_LIFE)

    def _spread(self) -> float:
        """Return a constant between 0 and 1 that differs by tag: tags that are requested together are then not
        validated together."""
        return zlib.crc32(f"{self.host}\n{self.repository}\n{self.tag}\n{self.negotiation}".encode()) / 2**32
