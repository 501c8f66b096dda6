"""Freshness of tags (RFC 9111 section 4.2) and visibility of repositories: pure functions of records and the time."""

from enum import Enum

from .records import ReferrersRecord, TagRecord, Visibility

VISIBILITY_LIFETIME = 3600.0
"""Seconds for which a repository counts as public after an anonymous read of it succeeded."""


class Freshness(Enum):
    """Whether a stored tag may be served without a request to the upstream."""

    ABSENT = "absent"
    FRESH = "fresh"
    STALE = "stale"


def freshness(record: TagRecord | ReferrersRecord | None, now: float, lifetime: float) -> Freshness:
    """Return the freshness of a record; `lifetime` in seconds, 0 = never fresh.

    A record from the future (the clock was set back) is stale: one more validation is cheap, a tag that stays fresh
    until the clock catches up is not.
    """
    if record is None:
        return Freshness.ABSENT
    return Freshness.FRESH if 0 <= now - record.validated_at < lifetime else Freshness.STALE


def is_public(visibility: Visibility | None, now: float, max_stale: float = 0.0) -> bool:
    """Whether a repository may be served to every client without a request to the upstream.

    The visibility holds for `VISIBILITY_LIFETIME`, and `max_stale` seconds longer while the upstream does not answer.
    In that case a visibility from the future holds, too: the clock was set back, and stored images must stay available.
    """
    if visibility is None or not visibility.public:
        return False
    age = now - visibility.checked_at
    return age < VISIBILITY_LIFETIME + max_stale and (age >= 0 or max_stale > 0)


def may_serve_stale(record: TagRecord | ReferrersRecord, now: float, lifetime: float, max_stale: float) -> bool:
    """Whether a stale record may be served while the upstream does not answer (stale-if-error, RFC 5861 section 4)."""
    return max_stale > 0 and now - record.validated_at < lifetime + max_stale
