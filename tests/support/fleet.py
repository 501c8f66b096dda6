"""Parts of a fleet in one process: a bucket in memory, and its clock."""

import time
from dataclasses import dataclass, field

from hubcache.fleet.bucket import Bucket
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


def memory_bucket(store: MemoryStore | None = None) -> tuple[Bucket, CountedRequests]:
    """Return a bucket in memory, and the observer of its requests."""
    seen = CountedRequests()
    return Bucket(MemoryStore() if store is None else store, seen), seen
