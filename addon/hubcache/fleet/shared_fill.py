"""What a fill has used of its fleet so far."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ..transfer.blob_body import BlobDownload, Transfer
from .leases import Lease
from .observer import FleetObserver
from .read_permission import Permission

PATIENCE_SECONDS = 30.0
"""Longest wait for other nodes without a byte of progress: longer than a lease of a node that was killed lives, and
shorter than clients wait, which is one minute or more."""

PROGRESS_BYTES = 1 << 20
"""A body from the bucket or another node that brought fewer bytes than this before it broke off is not resumed from
there."""

_MOST_GIVEN_UP = 2
"""After as many nodes whose bodies broke off, no further one is asked: the attempts of a fill are few."""

type Origin = Literal["bucket", "peer", "upstream"]


@dataclass(slots=True)
class SharedFill:
    """The state of one fill, over all its attempts to download the blob."""

    access: tuple[str, str, bool, str | None]
    """The access rights with which the blob is read, see `BlobRead.access`: `permission` applies to no others."""
    lease: Lease | None = None
    """The lease under which this node fetches the blob for the fleet."""
    origins: set[Origin] = field(default_factory=set)
    """Where bytes came from."""
    at: int = 0
    """Number of bytes that had arrived when the last attempt began."""
    waited: float = 0.0
    """Seconds of waiting for other nodes since the last byte arrived."""
    looked_at: float = -math.inf
    """When the last request was sent that did not find the blob in the bucket (monotonic clock)."""
    bucket_at: int | None = None
    """First byte of the last body from the bucket."""
    is_object_wrong: bool = False
    """Whether the bucket's object has another size than the blob."""
    permission: Permission | None = None
    """Whether bytes from elsewhere may be used; None before this is known."""
    avoided: dict[str, float] = field(default_factory=dict)
    """Addresses of nodes that could not be reached, and until when (monotonic clock) they are not tried again."""
    given_up: set[str] = field(default_factory=set)
    """Addresses of nodes whose bodies broke off early, or were too slow."""
    asks_leader: bool = True
    """Whether the node that fetched the blob's manifest is still to be asked, which is done once."""
    is_asking_leader: bool = False
    """Whether that node has not answered yet."""

    @property
    def is_public(self) -> bool:
        """Whether the blob is read as the public reads it."""
        return self.access[2]

    @property
    def is_fetching(self) -> bool:
        """Whether this node fetches the blob for the fleet."""
        return self.lease is not None and not self.lease.is_lost

    @property
    def has_waited_enough(self) -> bool:
        """Whether the registry is to be asked without a lease now."""
        return self.waited >= PATIENCE_SECONDS

    def begin_attempt(self, start: int) -> None:
        """Record that a download begins at byte `start`."""
        if start > self.at:
            self.at, self.waited = start, 0.0

    def give_up(self, address: str) -> None:
        """Receive nothing more from a node."""
        self.given_up.add(address)

    def may_ask(self, address: str, now: float) -> bool:
        """Whether a node may be asked for the blob at `now` (monotonic clock)."""
        is_given_up = address in self.given_up or len(self.given_up) >= _MOST_GIVEN_UP
        return not is_given_up and self.avoided.get(address, now) <= now

    def may_use_bucket(self, start: int) -> bool:
        """Whether the bucket is asked for the bytes from `start` on; if so, this counts as an attempt."""
        if self.bucket_at is not None and start < self.bucket_at + PROGRESS_BYTES:
            return False
        self.bucket_at = start
        return True

    def download(
        self, transfer: Transfer, tier: str, start: int, size: int | None, observer: FleetObserver
    ) -> BlobDownload:
        """Return a body of the bytes from `start` on; `tier` is where they come from, `bucket` or `peer`."""

        def report(_: str, count: int) -> None:
            observer.bytes_received(tier, count)

        assert self.permission is not None
        return BlobDownload(transfer, f"the {tier}", start, size, report, self.permission.answered_at)
