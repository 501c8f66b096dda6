"""What the tests of the retention policy share: stores that are full of something, and time that passes."""

from hubcache.decide.eviction import Decision
from hubcache.decide.retention import Retention
from hubcache.decide.retention_rows import Row
from hypothesis import strategies as st

NOW = 1.7e9
DAY = 86400.0
KIB = 1024
KEYS = st.integers(0, 9)
SIZES = st.integers(0, 50) | st.integers(0, 50 * KIB)


def never(_: int) -> bool:
    return False


def full(*sizes: int, requests: int = 1) -> Retention[int]:
    """A store with residents 0, 1, … of these sizes, asked for so many times each."""
    retention = Retention[int]()
    for key, size in enumerate(sizes):
        for _ in range(requests):
            retention.record_request(key, NOW)
        retention.record_stored(key, size, NOW)
    return retention


def asked(retention: Retention[int], key: int, times: int, now: float = NOW) -> int:
    for _ in range(times):
        retention.record_request(key, now)
    return key


def keys(decision: Decision[int]) -> list[int]:
    return [victim.key for victim in decision.victims]


def days_pass(retention: Retention[int], days: int, now: float = NOW) -> float:
    """The store looks at the time every few hours."""
    for _ in range(4 * days):
        now += DAY / 4
        retention.forget_absent(now)
    return now


def rows(retention: Retention[int]) -> dict[int, Row]:
    return {key: row for key in range(200) if (row := retention.row(key))}
