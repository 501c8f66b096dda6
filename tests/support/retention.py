"""Retention policies with content, and the passing of time, for tests of the retention policy."""

from hubcache.decide.eviction import Decision
from hubcache.decide.retention import Retention
from hubcache.decide.retention_rows import Row
from hypothesis import strategies as st

NOW = 1.7e9
DAY = 86400.0
KIB = 1024
KEYS = st.integers(0, 9)
SIZES = st.integers(0, 50) | st.integers(0, 50 * KIB)


def unprotected(_: int) -> bool:
    """Return False: no key is protected from eviction."""
    return False


def filled(*sizes: int, requests: int = 1) -> Retention[int]:
    """Return a policy with stored keys 0, 1, … of these sizes, each requested this many times."""
    retention = Retention[int]()
    for key, size in enumerate(sizes):
        for _ in range(requests):
            retention.record_request(key, NOW)
        retention.record_stored(key, size, NOW)
    return retention


def requested(retention: Retention[int], key: int, times: int, now: float = NOW) -> int:
    """Record requests for a key, and return the key."""
    for _ in range(times):
        retention.record_request(key, now)
    return key


def keys(decision: Decision[int]) -> list[int]:
    """Return the keys that are evicted, in order."""
    return [victim.key for victim in decision.victims]


def days_pass(retention: Retention[int], days: int, now: float = NOW) -> float:
    """Let days pass with a call of the policy every few hours; return the new time."""
    for _ in range(4 * days):
        now += DAY / 4
        retention.forget_absent(now)
    return now


def rows(retention: Retention[int]) -> dict[int, Row]:
    """Return all rows."""
    return {key: row for key in range(200) if (row := retention.row(key))}
