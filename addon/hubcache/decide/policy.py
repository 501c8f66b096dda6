"""Freshness of tags (RFC 9111 section 4.2): pure functions of records and the time."""

from enum import Enum

from .records import TagRecord


class Freshness(Enum):
    """What may be done with a remembered tag without asking the upstream."""

    ABSENT = "absent"
    FRESH = "fresh"
    STALE = "stale"


def freshness(record: TagRecord | None, now: float, lifetime: float) -> Freshness:
    """Whether a tag may be served unasked; `lifetime` in seconds, 0 = never.

    A record from the future (the clock was set back) is stale: asking once more is cheap, a tag that stays fresh
    until the clock catches up is not.
    """
    if record is None:
        return Freshness.ABSENT
    return Freshness.FRESH if 0 <= now - record.validated_at < lifetime else Freshness.STALE
