"""Leases whose results are in the bucket: they count as released, and their objects are deleted together.

Nodes look for a result before they acquire its lease. One that found none, and then created the lease sooner than
`RETIRED_SECONDS` after it sent that request, knows that no other node has stored the result meanwhile: the lease of
that node would still be there. It need not look again. A node deletes leases sooner only when it stops, is of an older
version, or has many uploads that wait; this may cost one more download.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from . import keys
from .bucket import Bucket, BucketUnavailable
from .tasks import start_task

RETIRED_SECONDS = 1.0
"""Shortest time between the end of a lease whose result is stored, and its deletion."""

_PERIOD = 2
"""Time between two deletions, as a multiple of `RETIRED_SECONDS`: most leases are in the next one."""

UNCONDITIONAL_SECONDS = 10.0
"""A lease that was renewed this short a time ago is deleted without a condition: no other node can have it when the
request arrives. Object stores have no conditional DELETE."""


@dataclass(frozen=True, slots=True)
class RetiredLease:
    """A lease that is not renewed any more; `renewed_at` is by the monotonic clock."""

    name: str
    e_tag: str
    renewed_at: float
    retired_at: float = field(default_factory=time.monotonic)


class RetiredLeases:
    """The retired leases of one node."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._leases: dict[str, RetiredLease] = {}
        self._deletion = asyncio.Lock()
        """Held during a deletion."""
        self._deleting: set[str] = set()
        """The names of the leases that are being deleted."""
        self._task: asyncio.Task[None] | None = None

    def add(self, lease: RetiredLease) -> None:
        """Delete a lease later."""
        self._leases[lease.name] = lease
        if self._task is None or self._task.done():
            self._task = start_task(self._delete_repeatedly(), "deletion of leases")

    def has(self, name: str) -> bool:
        """Whether a lease waits for its deletion."""
        return name in self._leases

    async def take(self, name: str) -> str | None:
        """Return the entity tag of a retired lease, which is not deleted then; None where there is none.

        Waits while a lease with this name is being deleted: a new one would be deleted, too.
        """
        if name in self._deleting:
            async with self._deletion:
                pass
        lease = self._leases.pop(name, None)
        return None if lease is None else lease.e_tag

    async def delete_all(self) -> None:
        """Delete all leases at once."""
        async with self._deletion:  # a deletion that runs is not cancelled
            if self._task is not None:
                self._task.cancel()
                self._task = None
        await self._delete(list(self._leases.values()))

    async def _delete_repeatedly(self) -> None:
        while self._leases:
            await asyncio.sleep(_PERIOD * RETIRED_SECONDS)
            now = time.monotonic()
            await self._delete([each for each in self._leases.values() if now - each.retired_at >= RETIRED_SECONDS])

    async def _delete(self, leases: Iterable[RetiredLease]) -> None:
        """Delete leases with one request, except those that another node may have. Where the bucket does not answer,
        they expire."""
        async with self._deletion:
            now = time.monotonic()
            due = [each for each in leases if self._leases.pop(each.name, None) is not None]
            own = [each.name for each in due if now - each.renewed_at < UNCONDITIONAL_SECONDS]
            if own:
                self._deleting.update(own)
                try:
                    with contextlib.suppress(BucketUnavailable):
                        await self._bucket.delete(*map(keys.lease, own))
                finally:
                    self._deleting.clear()
