"""Leases whose results are stored: they are deleted together, later, and show others that nothing was stored before."""

import asyncio
import random
import time
from types import SimpleNamespace

import pytest
from hubcache.fleet import keys, leases, retired_leases
from hubcache.fleet.bucket import Bucket
from hubcache.fleet.leases import Holder, Lease, Leases
from obstore.store import MemoryStore
from support.fleet import CLOSED_PORT, AdjustableClock, CountedRequests, TestNode, memory_bucket
from support.users import until
from support.virtual_bucket import Objects, VirtualBucket
from support.virtual_time import VirtualClock, in_virtual_time

NAMES = ["tag/1", "tag/2", "blob/sha256:3"]


def node(store: MemoryStore, name: str = "node") -> tuple[Leases, CountedRequests]:
    bucket, seen = memory_bucket(store)
    return Leases(bucket, AdjustableClock(), TestNode(name)), seen


async def acquired(own: Leases, name: str = NAMES[0]) -> Lease:
    lease = await own.acquire(name)
    assert isinstance(lease, Lease)
    return lease


def lease_keys(store: MemoryStore) -> list[str]:
    return sorted(entry["path"] for page in store.list("lease") for entry in page)


async def test_retired_leases_are_deleted_by_one_request_after_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retired_leases, "RETIRED_SECONDS", 0.5)
    store = MemoryStore()
    own, seen = node(store)
    for name in NAMES:
        (await acquired(own, name)).retire()
    retired_at = time.monotonic()
    assert own.held == ()
    assert lease_keys(store) == sorted(keys.lease(name) for name in NAMES)
    await until(lambda: seen.count("delete") == 1)
    assert lease_keys(store) == []
    assert time.monotonic() - retired_at >= 0.5
    (await acquired(own)).retire()
    await until(lambda: seen.count("delete") == 2)


async def test_node_acquires_its_retired_lease_again() -> None:
    store = MemoryStore()
    (own, seen), (other, _) = node(store), node(store, "other")
    (await acquired(own)).retire()
    seen.events.clear()
    lease = await acquired(own)
    assert seen.events == [("put", "ok")]
    await own._retired.delete_all()
    holder = await other.acquire(NAMES[0])
    assert isinstance(holder, Holder)
    assert holder.node == "node"
    await lease.release()
    assert lease_keys(store) == []


async def test_node_acquires_a_lease_again_after_its_deletion_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    own, _ = node(store)
    (await acquired(own)).retire()
    delete, begun, may_end = Bucket.delete, asyncio.Event(), asyncio.Event()

    async def delete_slowly(bucket: Bucket, *names: str) -> None:
        begun.set()
        await may_end.wait()
        await delete(bucket, *names)

    monkeypatch.setattr(Bucket, "delete", delete_slowly)
    deleting = asyncio.create_task(own._retired.delete_all())
    await begun.wait()
    acquiring = asyncio.create_task(acquired(own))
    await asyncio.wait([acquiring], timeout=0.1)
    assert not acquiring.done()
    may_end.set()
    await deleting
    lease = await acquiring
    assert lease_keys(store) == [keys.lease(NAMES[0])]
    await lease.release()


async def test_lease_is_acquired_while_others_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = node(MemoryStore())
    (await acquired(own)).retire()
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def delete_slowly(*_: str) -> None:
        begun.set()
        await may_end.wait()

    with monkeypatch.context() as patched:
        patched.setattr(own._bucket, "delete", delete_slowly)
        deleting = asyncio.create_task(own._retired.delete_all())
        await begun.wait()
        async with asyncio.timeout(10):
            lease = await acquired(own, NAMES[1])
        may_end.set()
        await deleting
    await lease.release()


async def test_leases_are_deleted_after_a_deletion_that_raised_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retired_leases, "RETIRED_SECONDS", 0.01)
    store = MemoryStore()
    own, _ = node(store)

    async def fail(*_: str) -> None:
        raise ArithmeticError

    with monkeypatch.context() as patched:
        patched.setattr(own._bucket, "delete", fail)
        (await acquired(own)).retire()
        await until(lambda: "deletion of leases" in caplog.text)
    (await acquired(own, NAMES[1])).retire()
    await until(lambda: lease_keys(store) == [keys.lease(NAMES[0])])


async def test_retired_lease_counts_as_released() -> None:
    own, _ = node(MemoryStore())
    lease = await acquired(own)
    waiting = asyncio.create_task(own.wait_released(NAMES[0]))
    await asyncio.sleep(0)
    lease.retire()
    assert await waiting
    assert await own.wait_released(NAMES[0])
    await own._retired.delete_all()
    assert not await own.wait_released(NAMES[0])


async def test_lease_that_this_node_does_not_get_does_not_count_as_released() -> None:
    store = MemoryStore()
    (own, _), (other, _) = node(store), node(store, "other")
    lease = await acquired(other)
    acquiring = asyncio.create_task(own.acquire(NAMES[0]))
    await asyncio.sleep(0)
    assert own.held == (NAMES[0],)
    assert not await own.wait_released(NAMES[0])
    assert isinstance(await acquiring, Holder)
    await lease.release()


async def test_only_a_new_lease_shows_that_nothing_was_stored() -> None:
    store, before = MemoryStore(), time.monotonic()
    own, _ = node(store)
    lease = await acquired(own)
    assert lease.shows_absence_since(before)
    assert not lease.shows_absence_since(before - 1.1)
    lease.retire()
    again = await acquired(own)
    assert not again.shows_absence_since(time.monotonic()), "this node itself may have stored it meanwhile"
    other, _ = node(store, "other")
    other._clock = AdjustableClock(ahead=leases.LEASE_SECONDS + 1)
    taken = await acquired(other)
    assert not taken.shows_absence_since(time.monotonic()), "the node that lost the lease may have stored it"
    await other.close()


async def test_lease_that_another_node_may_have_taken_is_not_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    own, seen = node(store)
    (await acquired(own)).retire()
    late = time.monotonic() + 10.5
    monkeypatch.setattr(retired_leases, "time", SimpleNamespace(monotonic=lambda: late))
    await own._retired.delete_all()
    assert seen.count("delete") == 0
    assert lease_keys(store) == [keys.lease(NAMES[0])]


async def test_retired_leases_expire_while_the_bucket_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    own, _ = node(store)
    lease = await acquired(own)
    own._bucket._store = CLOSED_PORT
    lease.retire()
    await own.close()
    assert lease_keys(store) == [keys.lease(NAMES[0])]


@pytest.mark.parametrize("seed", range(30))
def test_result_is_made_once_by_nodes_that_do_not_look_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node looks for the result, acquires the lease, looks again only if it must, and stores the result."""
    virtual = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr(leases, "time", virtual)
    monkeypatch.setattr(retired_leases, "time", virtual)
    random.seed(seed)

    @in_virtual_time
    async def run() -> None:
        objects, made = Objects(), list[str]()

        async def want(name: str) -> None:
            bucket = VirtualBucket(objects, latency=random.choice((0.005, 0.05, 0.5)))
            own = Leases(bucket, VirtualClock(), TestNode(name))
            await asyncio.sleep(random.uniform(0, 3))
            while True:
                looked_at = virtual.monotonic()
                if await bucket.get("result") is not None:
                    break
                lease = await own.acquire("result")
                if isinstance(lease, Holder):
                    await asyncio.sleep(random.uniform(0, 0.2))
                    continue
                if not lease.shows_absence_since(looked_at) and await bucket.get("result") is not None:
                    await lease.release()
                    break
                made.append(name)
                await asyncio.sleep(random.uniform(0, 0.1))
                await bucket.put("result", b"")
                lease.retire()
                break
            await asyncio.sleep(3)
            await own.close()

        await asyncio.gather(*(want(f"node{number}") for number in range(8)))
        assert len(made) == 1

    run()
