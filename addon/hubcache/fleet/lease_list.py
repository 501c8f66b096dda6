"""Lists the leases of all nodes of a fleet, for users."""

import asyncio

from . import keys
from .bucket import Bucket
from .clock import BucketClock
from .fleet_status import LeaseStatus
from .leases import LEASE_SECONDS
from .values import decode_value, text_field

_AT_ONCE = 16
"""Leases that are read at the same time."""


async def list_leases(bucket: Bucket, clock: BucketClock, most: int) -> list[LeaseStatus]:
    """Return the leases in the bucket, at most so many; raises `BucketUnavailable`."""
    found: list[str] = []
    async for entry in bucket.list(keys.LEASES):
        found.append(entry.key)
        if len(found) == most:
            break
    leases: list[LeaseStatus | None] = []
    for start in range(0, len(found), _AT_ONCE):
        leases += await asyncio.gather(*(_read(bucket, clock, key) for key in found[start : start + _AT_ONCE]))
    return [lease for lease in leases if lease is not None]


async def _read(bucket: Bucket, clock: BucketClock, key: str) -> LeaseStatus | None:
    """Return a lease; None when it has been released."""
    stored = await bucket.get(key)
    if stored is None:
        return None
    node = text_field(decode_value(stored.value) or {}, "node")
    age = abs(clock.now() - stored.entry.modified)
    renewed = clock.to_local(stored.entry.modified)
    return LeaseStatus(key.removeprefix(f"{keys.LEASES}/"), node, renewed, has_expired=age > LEASE_SECONDS)
