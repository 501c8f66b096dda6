"""What a fleet's requests to its bucket cost in the background, and at which size of a fleet a part of it ends.

Computed from the constants of the program, not measured. Transfer and storage are not included.
"""

from collections.abc import Callable
from math import ceil

from hubcache.fleet.membership import HEARTBEAT_SECONDS, MAX_NODES
from hubcache.fleet.popularity import BUSIEST, POPULARITY_SECONDS
from hubcache.fleet.request_cost import PRICES, request_cost
from hubcache.fleet.sweeper import SWEEP_OBJECTS, SWEEP_SECONDS

from .tables import markdown

MONTH = 30 * 86400.0
OBJECTS = 100_000
"""Objects in the bucket, if nothing else is given."""

ABOUT = (
    f"Requests in the background, at the prices of {PRICES}: a heartbeat every {HEARTBEAT_SECONDS:g} s is a write and "
    f"a list of all nodes; a busy node writes its counts of requests every {POPULARITY_SECONDS:g} s; and one node "
    f"sweeps for all every {SWEEP_SECONDS / 60:g} minutes. Computed from these periods, for a bucket of {OBJECTS:,} "
    f"objects and nodes that count {BUSIEST:,} digests each. In larger buckets sweeps are less frequent."
)
ABOUT_LIMITS = "Where parts of a fleet end as it grows, computed in the same way:"

_PAGE = 1000
"""Keys in the answer to one request to list, the most that S3 returns."""
_READS_PER_SECOND, _WRITES_PER_SECOND = 5500, 3500
"""What S3 answers at least for one prefix."""
_GET_SECONDS, _LIST_SECONDS = 0.02, 0.1
"""Usual times of a small request and of a list of a thousand keys."""
_PARALLEL_READS = 16
"""Counts of nodes that a sweep reads at the same time, as in `hubcache.fleet.popularity`."""
_ROW_SECONDS = 2e-6
"""Time to decode and add the count of one digest."""
_ROW_BYTES = 16 * 4 / 3
_KINDS = 9
"""Lists of a sweep of an empty bucket: one for each kind of object."""


def heartbeats(nodes: int) -> dict[str, float]:
    """Return the requests of one node a month, by kind, to find the others."""
    beats = MONTH / HEARTBEAT_SECONDS
    return {"put": beats, "list": beats * ceil(nodes / _PAGE)}


def counts() -> dict[str, float]:
    """Return the requests of one node a month to write its counts, if it is busy all the time."""
    return {"put": MONTH / POPULARITY_SECONDS}


def sweeps(nodes: int, objects: int) -> dict[str, float]:
    """Return the requests of one node a month for sweeps. One node sweeps for all; each reads the result."""
    scale = max(1.0, objects / SWEEP_OBJECTS)
    number = MONTH / (SWEEP_SECONDS * scale)
    shared = {"list": _KINDS + objects / _PAGE, "get": nodes + 4.0, "put": 2 + sweep_seconds(nodes, objects) / 5}
    own = {"get": MONTH / SWEEP_SECONDS}
    return {kind: number * count / nodes + own.get(kind, 0.0) for kind, count in shared.items()}


def sweep_seconds(nodes: int, objects: int) -> float:
    """Return how long a sweep takes that deletes nothing."""
    return (
        (_KINDS + objects / _PAGE) * _LIST_SECONDS
        + ceil(nodes / _PARALLEL_READS) * _GET_SECONDS
        + nodes * BUSIEST * _ROW_SECONDS
    )


def dollars(*requests: dict[str, float]) -> float:
    """Return the cost of requests by kind."""
    return sum(request_cost({kind: round(count) for kind, count in each.items()}, 0) for each in requests)


def table(sizes: list[int], objects: int = OBJECTS) -> str:
    """Return the cost for fleets of these sizes."""
    rows = [
        [
            *("nodes", "heartbeats", "counts", "sweeps", "one node, $ a month", "the fleet, $ a month"),
            *("requests a second", "a sweep takes", "and reads counts of"),
        ]
    ]
    for nodes in sizes:
        parts = heartbeats(nodes), counts(), sweeps(nodes, objects)
        total = sum(sum(part.values()) for part in parts) * nodes / MONTH
        one = dollars(*parts)
        rows.append(
            [
                f"{nodes:,}",
                *(f"{dollars(part):.2f}" for part in parts),
                f"{one:.2f}",
                f"{one * nodes:,.0f}",
                f"{total:,.1f}",
                f"{sweep_seconds(nodes, objects):,.0f} s",
                f"{nodes * BUSIEST * _ROW_BYTES / 1e6:,.1f} MB",
            ]
        )
    return markdown(rows)


def limits() -> str:
    """Return a table of what ends first as a fleet grows, and where."""
    found = [
        (
            MAX_NODES,
            "nodes that a node reads from and reports to",
            f"one list of {_PAGE:,} keys; further nodes share the bucket, and see a push when their tag expires",
        ),
        (
            _most(lambda nodes: nodes * ceil(nodes / _PAGE) / HEARTBEAT_SECONDS <= _READS_PER_SECOND),
            "nodes: the lists of all heartbeats",
            f"{_READS_PER_SECOND:,} reads a second of one prefix",
        ),
        (
            _most(lambda nodes: nodes / HEARTBEAT_SECONDS <= _WRITES_PER_SECOND),
            "nodes: the writes of all heartbeats",
            f"{_WRITES_PER_SECOND:,} writes a second of one prefix",
        ),
        (
            _most(lambda nodes: sweep_seconds(nodes, OBJECTS) <= SWEEP_SECONDS),
            "nodes: a sweep reads and adds the counts of all nodes",
            f"before the next one is due, after {SWEEP_SECONDS:g} s",
        ),
        (
            round(1 / (2 * _GET_SECONDS)),
            "portions of the free bytes that the fleet takes a second",
            "each replaces the same object, with one request to read and one to write",
        ),
    ]
    rows = [["most", "of", "limited by"], *([f"{most:,}", what, why] for most, what, why in found)]
    return markdown(rows)


def _most(is_possible: Callable[[int], bool]) -> int:
    """Return the highest number for which this is true, to two digits; it is true for all lower ones."""
    low, high = 1, 1 << 24
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_possible(middle) else (low, middle - 1)
    digits = max(0, len(str(low)) - 2)
    return low // 10**digits * 10**digits
