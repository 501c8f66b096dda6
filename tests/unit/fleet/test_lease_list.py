"""The leases of all nodes, as users see them."""

from hubcache.fleet.clock import BucketClock
from hubcache.fleet.lease_list import list_leases
from hubcache.fleet.leases import LEASE_SECONDS, Lease, Leases
from support.fleet import TestNode, memory_bucket


async def test_leases_have_holders_and_ages() -> None:
    bucket, _ = memory_bucket()
    clock = BucketClock()
    leases = Leases(bucket, clock, TestNode("one"))
    assert isinstance(await leases.acquire("blob/sha256:aa"), Lease)
    await bucket.put("lease/sweep", b"not JSON")
    found = sorted(await list_leases(bucket, clock, 10), key=lambda lease: lease.name)
    assert [(lease.name, lease.node, lease.has_expired) for lease in found] == [
        ("blob/sha256:aa", "one", False),
        ("sweep", None, False),
    ]
    assert leases.held == ("blob/sha256:aa",)
    await leases.close()
    assert [lease.name for lease in await list_leases(bucket, clock, 10)] == ["sweep"]


async def test_lease_that_is_not_renewed_has_expired() -> None:
    bucket, _ = memory_bucket()
    later = BucketClock(monotonic=lambda: LEASE_SECONDS + 5)
    await bucket.put("lease/a", b"{}")
    entry = await bucket.head("lease/a")
    assert entry is not None
    later.observe(entry.modified, 0.0, 0.1)
    (lease,) = await list_leases(bucket, later, 10)
    assert lease.has_expired


async def test_number_of_leases_is_bounded() -> None:
    bucket, seen = memory_bucket()
    for number in range(40):
        await bucket.put(f"lease/{number}", b"{}")
    assert len(await list_leases(bucket, BucketClock(), 30)) == 30
    assert seen.count("get") == 30
