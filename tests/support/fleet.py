"""Parts of a fleet in one process: a bucket in memory, and its clock."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from hubcache.fleet.bucket import Bucket
from hubcache.fleet.membership import Node
from obstore.store import MemoryStore, S3Store

CLOSED_PORT = S3Store(
    "bucket",
    endpoint="http://127.0.0.1:9",
    access_key_id="key",
    secret_access_key="secret",
    region="us-east-1",
    client_options={"allow_http": True},
    retry_config={"max_retries": 0},
)
"""A store at a port where nothing listens."""


@dataclass
class CountedRequests:
    """An observer of a bucket, which keeps what it observed."""

    events: list[tuple[str, str]] = field(default_factory=list)

    def bucket_answered(self, kind: str, outcome: str, *, is_of_pulls: bool) -> None:
        self.events.append((kind, outcome))

    def count(self, kind: str) -> int:
        """Return the number of requests of a kind."""
        return sum(each == kind for each, _ in self.events)


@dataclass
class AdjustableClock:
    """The clock of the bucket, which a test can advance."""

    ahead: float = 0.0

    def now(self) -> float:
        return time.time() + self.ahead


@dataclass(frozen=True)
class TestNode:
    """A node's identity."""

    __test__ = False

    id: str
    address: str = "http://127.0.0.1:9"


class KnownNodes:
    """The live nodes as one of them sees them: `others` may grow."""

    def __init__(self, me: TestNode, others: Iterable[TestNode] = ()) -> None:
        self.me = Node(me.id, me.address, "1")
        self._others = others

    @property
    def nodes(self) -> tuple[Node, ...]:
        others = [Node(each.id, each.address, "1") for each in self._others if each.id != self.me.id]
        return (self.me, *others)


def memory_bucket(store: MemoryStore | None = None) -> tuple[Bucket, CountedRequests]:
    """Return a bucket in memory, and the observer of its requests."""
    seen = CountedRequests()
    return Bucket(MemoryStore() if store is None else store, seen), seen
