"""Sweeps: what is deleted, what stays, which node sweeps and when."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hubcache.fleet import keys
from hubcache.fleet.bucket import BucketUnavailable, Entry
from hubcache.fleet.clock import BucketClock
from hubcache.fleet.leases import Leases
from hubcache.fleet.membership import Membership, Node
from hubcache.fleet.popularity import NodePopularity
from hubcache.fleet.room import Room
from hubcache.fleet.sweep_state import Grant
from hubcache.fleet.sweeper import Sweeper
from support.fleet import AdjustableClock, TestNode, memory_bucket
from support.sweeps import CAP, DAY, Members, account, add_blob, begin_account, digest
from support.users import until
from support.virtual_bucket import Objects, VirtualBucket
from support.virtual_time import VirtualClock, in_virtual_time, virtual_now

EXPIRE_AFTER = 30 * DAY


class SweptFleet:
    """A bucket, and nodes that sweep it."""

    def __init__(self, nodes: int = 1) -> None:
        self.objects = Objects()
        self.members = Members.of(nodes)
        self.buckets = [VirtualBucket(self.objects) for _ in self.members]
        self.sweepers = [self._sweeper(*each) for each in zip(self.members, self.buckets, strict=True)]
        self.sweeper = self.sweepers[0]
        self.bucket = self.buckets[0]

    def _sweeper(self, members: Members, bucket: VirtualBucket) -> Sweeper:
        clock = VirtualClock()
        leases = Leases(bucket, clock, members.me)
        return Sweeper(bucket, clock, members, leases, CAP, 7 * DAY, EXPIRE_AFTER)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        for each in self.sweepers:
            await each.start()
        yield
        for each in self.sweepers:
            await each.close()

    lease_bytes = 113
    """Bytes of the sweeper's own lease, which is in the bucket while it lists it."""

    def kept(self, *kinds: str) -> list[str]:
        """Return the keys of these kinds that are in the bucket."""
        return sorted(key for key in self.objects.by_key if key.partition("/")[0] in kinds)


@in_virtual_time
async def test_first_sweep_begins_the_account() -> None:
    fleet = SweptFleet()
    assert await fleet.sweeper.sweep()
    state = account(fleet.objects)
    assert (state.cap, state.grants, state.sweep.by) == (CAP, {}, "node-0")
    assert state.used == fleet.lease_bytes
    assert state.free(CAP) == 980_000 - fleet.lease_bytes
    assert fleet.sweeper.state == state


@in_virtual_time
async def test_sweep_deletes_what_is_requested_least_until_a_tenth_is_free() -> None:
    fleet = SweptFleet()
    blobs = [add_blob(fleet.objects, name, 100_000, age=DAY - name) for name in range(9)]
    small = add_blob(fleet.objects, "small", 1000, age=2 * DAY)
    await fleet.sweeper.sweep()
    assert set(fleet.kept("blob")) == {*blobs[1:], small}
    state = account(fleet.objects)
    assert (state.used, state.sweep.deleted, state.sweep.deleted_bytes) == (801_000 + fleet.lease_bytes, 1, 100_000)
    assert (state.sweep.objects["blob"], state.sweep.bytes["blob"]) == (9, 801_000)
    assert state.clock.value == pytest.approx(0.1, rel=0.02)


@in_virtual_time
async def test_blobs_that_any_node_requests_stay() -> None:
    fleet = SweptFleet()
    blobs = [add_blob(fleet.objects, name, 100_000, age=DAY - name) for name in range(10)]
    counting = NodePopularity(fleet.bucket, VirtualClock(), "other", 7 * DAY, lambda _: True)
    counting.count_request(digest(0))
    await counting.write()
    await fleet.sweeper.sweep()
    assert set(fleet.kept("blob")) == {blobs[0], *blobs[3:]}, "the bytes of the counts need space, too"


@in_virtual_time
async def test_nothing_is_deleted_while_there_is_space() -> None:
    fleet = SweptFleet()
    blobs = [add_blob(fleet.objects, name, 99_900, age=DAY) for name in range(9)]
    await fleet.sweeper.sweep()
    assert fleet.kept("blob") == sorted(blobs)


@in_virtual_time
async def test_idle_blobs_are_deleted_although_there_is_space() -> None:
    fleet = SweptFleet()
    add_blob(fleet.objects, "idle", 10, age=31 * DAY)
    stays = add_blob(fleet.objects, "stays", 10, age=29 * DAY)
    await fleet.sweeper.sweep()
    assert fleet.kept("blob") == [stays]


@in_virtual_time
async def test_left_over_objects_are_deleted_and_those_in_use_stay() -> None:
    fleet = SweptFleet()
    requested, old = digest("requested"), digest("old")
    for key, age in {
        "lease/blob/a": 3700.0,
        "lease/blob/b": 60.0,
        "node/dead": 3700.0,
        "node/live": 5.0,
        "probe/x": 3700.0,
        keys.tag("r", "a/b", "old"): 31 * DAY,
        keys.tag("r", "a/b", "new"): 29 * DAY,
        keys.manifest("r", "a/b", old): 31 * DAY,
        keys.manifest("r", "a/b", requested): 31 * DAY,
        keys.manifest("r", "a/b", digest("new")): 29 * DAY,
        "other/of-a-newer-version": 99 * DAY,
        keys.SECRET: 99 * DAY,
    }.items():
        fleet.objects.write(key, b"{}", age=age)
    counting = NodePopularity(fleet.bucket, VirtualClock(), "live", 7 * DAY, lambda _: True)
    counting.count_request(requested)
    await counting.write()
    await fleet.sweeper.sweep()
    assert fleet.kept("lease", "node", "probe", "tag", "manifest", "other", "secret") == sorted(
        [
            *("lease/blob/b", "node/live", "other/of-a-newer-version", "secret", keys.tag("r", "a/b", "new")),
            *(keys.manifest("r", "a/b", one) for one in (requested, digest("new"))),
        ]
    )
    assert account(fleet.objects).sweep.objects["tag"] == 1


@in_virtual_time
async def test_sweep_frees_as_many_bytes_as_a_large_blob_needs() -> None:
    fleet = SweptFleet()
    begin_account(fleet.objects)
    for name in range(9):
        add_blob(fleet.objects, name, 100_000, age=DAY)
    await fleet.sweeper.sweep(needed=250_000)
    assert account(fleet.objects).free(CAP) >= 250_000
    assert len(fleet.kept("blob")) == 7


@in_virtual_time
async def test_bytes_that_are_granted_count_as_used() -> None:
    fleet = SweptFleet()
    begin_account(fleet.objects)
    state = account(fleet.objects).with_grant("node-1", 0, 150_000, 0, virtual_now())
    fleet.objects.write(keys.SWEEP_STATE, state.encode())
    for name in range(8):
        add_blob(fleet.objects, name, 100_000, age=DAY)
    await fleet.sweeper.sweep()
    after = account(fleet.objects)
    assert len(fleet.kept("blob")) == 7
    assert after.grants == {"node-1": Grant(150_000, after.grants["node-1"].at)}


@in_virtual_time
async def test_sweep_that_dies_between_its_deletions_leaves_a_safe_account() -> None:
    fleet = SweptFleet()
    begin_account(fleet.objects, used=980_000)
    for name in range(9):
        add_blob(fleet.objects, name, 109_000, age=DAY)
    before = account(fleet.objects)
    delete = fleet.bucket.delete

    async def deleted_by_half(*some: str) -> None:
        await delete(*some[:1])
        raise BucketUnavailable("killed")

    fleet.bucket.delete = deleted_by_half  # type: ignore[method-assign]
    with pytest.raises(BucketUnavailable):
        await fleet.sweeper.sweep()
    assert len(fleet.kept("blob")) == 8
    assert account(fleet.objects) == before
    fleet.bucket.delete = delete  # type: ignore[method-assign]
    await fleet.sweeper.sweep()
    assert account(fleet.objects).used == fleet.objects.sizes("blob") + fleet.lease_bytes <= 900_000


@in_virtual_time
async def test_lost_account_begins_again_without_free_bytes() -> None:
    fleet = SweptFleet()
    add_blob(fleet.objects, "a", 100_000, age=DAY)
    await fleet.sweeper.sweep()
    assert account(fleet.objects).free(CAP) == 0
    await asyncio.sleep(2701)
    await fleet.sweeper.sweep()
    assert account(fleet.objects).free(CAP) == 880_000 - fleet.lease_bytes


@in_virtual_time
async def test_account_of_a_newer_version_stops_sweeps_until_nobody_writes_it() -> None:
    fleet = SweptFleet()
    fleet.objects.write(keys.SWEEP_STATE, b'{"format":2}')
    assert not await fleet.sweeper.sweep()
    assert fleet.objects.by_key[keys.SWEEP_STATE][1] == b'{"format":2}'
    await asyncio.sleep(2701)
    assert await fleet.sweeper.sweep()
    assert account(fleet.objects).free(CAP) == 980_000 - fleet.lease_bytes


@in_virtual_time
async def test_one_node_sweeps_every_ten_minutes() -> None:
    fleet = SweptFleet(nodes=5)
    async with fleet.started():
        times = set()
        for _ in range(400):
            await asyncio.sleep(10)
            if keys.SWEEP_STATE in fleet.objects.by_key:
                times.add((account(fleet.objects).sweep.at, account(fleet.objects).sweep.by))
    assert len(times) == 7
    ordered = sorted(at for at, _ in times)
    assert all(590 < later - earlier < 660 for earlier, later in pairwise(ordered))


@in_virtual_time
async def test_another_node_sweeps_when_the_first_one_does_not() -> None:
    fleet = SweptFleet(nodes=3)
    begin_account(fleet.objects, age=0)
    fleet.buckets[0].is_cut_off = True
    async with fleet.started():
        await asyncio.sleep(700)
    assert account(fleet.objects).sweep.by == "node-1"


@in_virtual_time
async def test_nodes_sweep_after_the_clock_of_the_bucket_was_set_back() -> None:
    fleet = SweptFleet()
    begin_account(fleet.objects, age=-DAY)
    ahead = account(fleet.objects).sweep.at
    async with fleet.started():
        await asyncio.sleep(30)
    assert account(fleet.objects).sweep.at < ahead


@in_virtual_time
async def test_buckets_with_many_objects_are_swept_less_often() -> None:
    fleet = SweptFleet()
    begin_account(fleet.objects, age=0)
    state = account(fleet.objects)
    assert fleet.sweeper._due_in() <= 0
    await fleet.sweeper._read()
    assert fleet.sweeper._due_in() == pytest.approx(600, abs=1)
    state.sweep.objects["blob"] = 1_000_000  # type: ignore[index]
    fleet.objects.write(keys.SWEEP_STATE, state.encode())
    await fleet.sweeper._read()
    assert fleet.sweeper._due_in() == pytest.approx(6000, abs=1)


@in_virtual_time
async def test_nodes_that_need_space_at_the_same_time_wait_for_one_sweep() -> None:
    fleet = SweptFleet(nodes=4)
    begin_account(fleet.objects, age=0)
    first = account(fleet.objects).sweep
    began = virtual_now()
    await asyncio.gather(*(sweeper.make_room(1000) for sweeper in fleet.sweepers))
    assert 60 <= virtual_now() - began < 90, "sweeps are not more frequent than one a minute"
    assert account(fleet.objects).sweep.at > first.at
    assert len({sweeper.state.sweep.at for sweeper in fleet.sweepers if sweeper.state is not None}) == 1


@in_virtual_time
async def test_waiting_for_a_sweep_ends_when_there_is_none() -> None:
    fleet = SweptFleet(nodes=2)
    begin_account(fleet.objects, age=0)
    acquired = await Leases(fleet.buckets[1], VirtualClock(), TestNode("node-1")).acquire("sweep")
    began = virtual_now()
    fleet.objects.by_key["lease/sweep"] = renewed(fleet.objects, began + 1000)
    await fleet.sweeper.make_room(1000)
    assert 90 <= virtual_now() - began < 100
    assert acquired


def renewed(objects: Objects, at: float) -> tuple[int, bytes, Entry]:
    """Return the lease of the sweeper, written at this time."""
    size, value, entry = objects.by_key["lease/sweep"]
    return size, value, Entry(entry.key, size, at, entry.e_tag)


@in_virtual_time
async def test_sweeps_go_on_beside_objects_that_cannot_be_read() -> None:
    fleet = SweptFleet()
    fleet.objects.write("popularity/broken", '{"format":1,"rows":"é"}'.encode())
    begin_account(fleet.objects)
    broken = json.loads(fleet.objects.by_key[keys.SWEEP_STATE][1]) | {"swept": {"blob": [float("inf"), 1]}}
    fleet.objects.write(keys.SWEEP_STATE, json.dumps(broken).encode(), age=DAY)
    async with fleet.started():
        await asyncio.sleep(60)
        assert account(fleet.objects).sweep.at > virtual_now() - 60


async def test_parts_stop_after_their_background_work_has_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    bucket, _ = memory_bucket()
    clock, members = AdjustableClock(), Members.of(1)[0]
    sweeper = Sweeper(bucket, clock, members, Leases(bucket, clock, members.me), CAP, 7 * DAY, EXPIRE_AFTER)
    monkeypatch.setattr(sweeper, "_sweep_repeatedly", fail)
    room = Room(bucket, clock, members, CAP, sweeper.make_room)
    monkeypatch.setattr(room, "_give_back_repeatedly", fail)
    popularity = NodePopularity(bucket, clock, members.me.id, 7 * DAY, lambda _: True)
    monkeypatch.setattr(popularity, "_write_repeatedly", fail)
    membership = Membership(bucket, BucketClock(), Node("a", "http://127.0.0.1:5002", "1"))
    monkeypatch.setattr(membership, "_beat_repeatedly", fail)
    parts = (sweeper, room, popularity, membership)
    for part in parts:
        await part.start()
    await until(lambda: len(caplog.records) == len(parts))
    for part in parts:
        await part.close()
    assert len(caplog.records) == len(parts)
