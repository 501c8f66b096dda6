"""Pauses after a 429: until they end, no request that would receive another one is sent (RFC 6585 section 4)."""

import hashlib
from collections.abc import Callable

from cachetools import TLRUCache

_MAX_PAUSES = 10_000

type _Key = tuple[str, str]


class RateLimitPauses:
    """The pauses that one registry requested, by the kind of content and by credentials ("" for anonymous requests).

    Credentials are kept as a hash. `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: TLRUCache[_Key, float] = TLRUCache(_MAX_PAUSES, lambda _, until, __: until, clock)

    def begin(self, kind: str, authorization: str, seconds: float) -> None:
        """Record that the registry requested a pause."""
        self._until[_key(kind, authorization)] = self._clock() + seconds

    def extend(self, kind: str, authorization: str, seconds: float) -> None:
        """As `begin`, but a longer pause that has begun stays as it is."""
        self.begin(kind, authorization, max(seconds, self.remaining(kind, authorization)))

    def remaining(self, kind: str, authorization: str) -> float:
        """Return the seconds until the pause ends; 0 when there is none."""
        return max(0.0, self._until.get(_key(kind, authorization), 0.0) - self._clock())


def _key(kind: str, authorization: str) -> _Key:
    return kind, hashlib.sha256(authorization.encode("utf-8", "replace")).hexdigest() if authorization else ""
