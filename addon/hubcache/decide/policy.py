"""Freshness of tags (RFC 9111 section 4.2) and of verdicts on repositories: pure functions of records and the time."""

from enum import Enum

from .records import ReferrersRecord, TagRecord, Visibility

VISIBILITY_LIFETIME = 3600.0
"""Seconds for which a repository counts as public after an anonymous read of it succeeded."""


class Freshness(Enum):
    """What may be done with a remembered tag without asking the upstream."""

    ABSENT = "absent"
    FRESH = "fresh"
    STALE = "stale"


def freshness(record: TagRecord | ReferrersRecord | None, now: float, lifetime: float) -> Freshness:
    """Whether a tag may be served unasked; `lifetime` in seconds, 0 = never.

    A record from the future (the clock was set back) is stale: asking once more is cheap, a tag that stays fresh
    until the clock catches up is not.
    """
    if record is None:
        return Freshness.ABSENT
    return Freshness.FRESH if 0 <= now - record.validated_at < lifetime else Freshness.STALE


def is_public(visibility: Visibility | None, now: float, max_stale: float = 0.0) -> bool:
    """Whether anybody may be served from a repository unasked; `max_stale` seconds longer when nobody can be asked.

    Then also by a verdict from the future: the clock was set back, and stored images must outlive that.
    """
    if visibility is None or not visibility.public:
        return False
    age = now - visibility.checked_at
    return age < VISIBILITY_LIFETIME + max_stale and (age >= 0 or max_stale > 0)


def may_serve_stale(record: TagRecord | ReferrersRecord, now: float, lifetime: float, max_stale: float) -> bool:
    """Whether a stale tag may be served because the upstream does not answer (RFC 5861 section 4, stale-if-error)."""
    return max_stale > 0 and now - record.validated_at < lifetime + max_stale
