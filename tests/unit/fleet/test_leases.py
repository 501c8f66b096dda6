"""Leases: one holder, takeover after expiry, renewal and release."""

import asyncio
from dataclasses import replace

import pytest
from hubcache.fleet import keys, leases
from hubcache.fleet.bucket import Bucket, BucketUnavailable, StoredObject
from hubcache.fleet.leases import LEASE_SECONDS, Holder, Lease, Leases
from obstore.store import MemoryStore
from support.fleet import AdjustableClock, CountedRequests, TestNode, memory_bucket
from support.users import until

NAME = "blob/sha256:0"


class Fleet:
    """Nodes that share one bucket and its clock."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = AdjustableClock()
        self.bucket, self.seen = memory_bucket(self.store)

    def node(self, identity: str) -> Leases:
        return Leases(Bucket(self.store, CountedRequests()), self.clock, TestNode(identity))


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


async def acquired(node: Leases, name: str = NAME) -> Lease:
    lease = await node.acquire(name)
    assert isinstance(lease, Lease)
    return lease


async def test_one_of_many_nodes_acquires_a_lease(fleet: Fleet) -> None:
    nodes = [fleet.node(f"node{number}") for number in range(8)]
    results = await asyncio.gather(*(node.acquire(NAME) for node in nodes))
    held = [result for result in results if isinstance(result, Lease)]
    holders = {result.node for result in results if isinstance(result, Holder)}
    assert len(held) == 1
    assert holders == {f"node{results.index(held[0])}"}
    await held[0].release()


async def test_released_lease_can_be_acquired(fleet: Fleet) -> None:
    first, second = fleet.node("a"), fleet.node("b")
    lease = await acquired(first)
    holder = await second.holder(NAME)
    assert holder is not None
    assert (holder.node, holder.address) == ("a", "http://127.0.0.1:9")
    await lease.release()
    assert await second.holder(NAME) is None
    await (await acquired(second)).release()


async def test_holder_in_the_same_process_is_the_node_itself(fleet: Fleet) -> None:
    node = fleet.node("a")
    first, second = await asyncio.gather(node.acquire(NAME), node.acquire(NAME))
    assert isinstance(first, Lease)
    assert isinstance(second, Holder)
    assert second.node == "a"
    await first.release()


@pytest.mark.parametrize("sign", [1, -1], ids=["past", "future"])  # future: the bucket's clock was set back
async def test_expired_lease_is_taken_over_by_one_node(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, sign: int
) -> None:
    holder_of = leases._holder

    def aged(found: StoredObject) -> Holder:
        holder = holder_of(found)
        return replace(holder, modified=holder.modified - sign * age) if holder.node == "old" else holder

    monkeypatch.setattr(leases, "_holder", aged)
    age = LEASE_SECONDS - 5
    old = await acquired(fleet.node("old"))
    others = [fleet.node(f"node{number}") for number in range(4)]
    assert {await each.acquire(NAME) for each in others} == {await others[0].holder(NAME)}
    age = LEASE_SECONDS + 1
    assert await others[0].holder(NAME) is None
    results = await asyncio.gather(*(each.acquire(NAME) for each in others))
    assert sorted(isinstance(result, Lease) for result in results) == [False, False, False, True]
    assert not await old._renew()
    assert old.is_lost
    await old.release()
    assert await fleet.node("new").holder(NAME) is not None, "a lost lease is not deleted: another node has it"
    for each in others:
        await each.close()


async def test_lease_is_renewed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    node = fleet.node("a")
    lease = await acquired(node)
    before = await fleet.bucket.get(keys.lease(NAME))
    assert before is not None

    await until(lambda: lease._e_tag != before.entry.e_tag)
    after = await fleet.bucket.get(keys.lease(NAME))
    assert after is not None
    assert after.value != before.value, "S3's entity tags are hashes of the content"
    assert not lease.is_lost
    await lease.release()


async def test_lease_is_kept_when_the_response_of_a_renewal_was_lost(fleet: Fleet) -> None:
    lease = await acquired(fleet.node("a"))
    known = lease._e_tag
    assert await lease.write(known)
    lease._e_tag = known  # as if the response had not arrived
    assert await lease._renew()
    await lease.release()
    assert await fleet.bucket.get(keys.lease(NAME)) is None


async def test_lease_of_this_node_that_it_does_not_know_is_taken_over(fleet: Fleet) -> None:
    """The response to the request that created it was lost."""
    lost = await acquired(fleet.node("a"))
    lease = await acquired(fleet.node("a"))
    assert not await lost._renew()
    await lost.release()
    await lease.release()


async def test_lease_that_cannot_be_renewed_is_lost_in_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    monkeypatch.setattr(leases, "_RETRY_SECONDS", 0.01)
    lease = await acquired(fleet.node("a"))
    failing = True
    replace_object = Bucket.replace

    async def replace_unless_failing(self: Bucket, key: str, value: bytes, e_tag: str) -> str | None:
        if failing:
            raise BucketUnavailable("down")
        return await replace_object(self, key, value, e_tag)

    monkeypatch.setattr(Bucket, "replace", replace_unless_failing)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.05)
    await until(lambda: lease.is_lost)
    failing = False
    monkeypatch.setattr(leases, "LEASE_SECONDS", 60.0)
    renewed_at = lease._renewed_at
    await until(lambda: lease._renewed_at > renewed_at)
    assert not lease.is_lost, "no other node has taken it meanwhile"
    await lease.release()


async def test_lease_of_a_newer_format_is_respected_until_it_expires(fleet: Fleet) -> None:
    await fleet.bucket.put(keys.lease(NAME), b'{"format": 2, "holder": {"node": "new"}}')
    node = fleet.node("a")
    holder = await node.acquire(NAME)
    assert isinstance(holder, Holder)
    assert (holder.node, holder.address) == ("", "")
    fleet.clock.ahead = LEASE_SECONDS + 2
    await (await acquired(node)).release()


async def test_lease_of_a_cancelled_task_is_released(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    create, arrived = Bucket.create, asyncio.Event()

    async def create_and_report(self: Bucket, key: str, value: bytes) -> str | None:
        arrived.set()
        await asyncio.sleep(0)
        return await create(self, key, value)

    monkeypatch.setattr(Bucket, "create", create_and_report)
    node = fleet.node("a")
    task = asyncio.create_task(node.acquire(NAME))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await node.close()
    assert await fleet.bucket.get(keys.lease(NAME)) is None
    assert node._own == {}


async def test_close_releases_all_leases(fleet: Fleet) -> None:
    node = fleet.node("a")
    for name in ("one", "two"):
        await acquired(node, name)
    await node.close()
    assert [entry.key async for entry in fleet.bucket.list("lease")] == []


async def test_failure_to_acquire_is_reported_and_leaves_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Bucket, key: str, value: bytes) -> str | None:
        raise BucketUnavailable("down")

    node = fleet.node("a")
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "create", fail)
        with pytest.raises(BucketUnavailable):
            await node.acquire(NAME)
    await (await acquired(node)).release()


async def test_loser_does_not_wait_for_a_slow_refusal(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """SeaweedFS answers the losers of a race after seconds."""
    create, refuse = Bucket.create, asyncio.Event()

    async def create_slowly(self: Bucket, key: str, value: bytes) -> str | None:
        await refuse.wait()
        return await create(self, key, value)

    lease = await acquired(fleet.node("a"))
    monkeypatch.setattr(Bucket, "create", create_slowly)
    other = fleet.node("b")
    holder = await other.acquire(NAME)
    assert isinstance(holder, Holder)
    assert holder.node == "a"
    await lease.release()
    refuse.set()  # it is no refusal: the lease is free now
    await other.close()
    assert await fleet.bucket.get(keys.lease(NAME)) is None, "what was acquired too late is released"


async def test_slow_winner_has_the_lease(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Bucket.create

    async def create_slowly(self: Bucket, key: str, value: bytes) -> str | None:
        await asyncio.sleep(0.05)
        return await create(self, key, value)

    monkeypatch.setattr(Bucket, "create", create_slowly)
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.0)
    await (await acquired(fleet.node("a"))).release()
