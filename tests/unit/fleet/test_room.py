"""Grants of the bucket's bytes: taken in portions, given back, and not used when they could be another node's."""

import asyncio

import pytest
from hubcache.fleet.bucket import BucketUnavailable
from hubcache.fleet.keys import SWEEP_STATE
from hubcache.fleet.room import Room
from hubcache.fleet.sweep_state import SweepState, grantable
from support.sweeps import CAP, Members, account, begin_account
from support.virtual_bucket import Objects, VirtualBucket
from support.virtual_time import VirtualClock, in_virtual_time


class Rooms:
    """The rooms of some nodes, and the sweeps that they asked for."""

    def __init__(self, nodes: int = 2, cap: int = CAP) -> None:
        self.objects = Objects()
        self.bucket = VirtualBucket(self.objects)
        self.needed: list[int] = []
        members = Members.of(nodes)
        self.rooms = [Room(self.bucket, VirtualClock(), each, cap, self._make_room) for each in members]

    async def _make_room(self, needed: int) -> None:
        self.needed.append(needed)


@in_virtual_time
async def test_a_portion_suffices_for_many_uploads() -> None:
    fleet = Rooms()
    begin_account(fleet.objects)
    room = fleet.rooms[0]
    assert await room.take(1000)
    portion = grantable(CAP) // 16
    assert account(fleet.objects).grants["node-0"].bytes == portion
    before = fleet.objects.by_key[SWEEP_STATE]
    for _ in range(9):
        assert await room.take(1000)
    assert fleet.objects.by_key[SWEEP_STATE] == before
    assert fleet.needed == []


@in_virtual_time
async def test_large_blob_gets_a_portion_of_its_own_size() -> None:
    fleet = Rooms()
    begin_account(fleet.objects)
    assert await fleet.rooms[0].take(CAP // 5)
    assert account(fleet.objects).granted == CAP // 5


@in_virtual_time
async def test_blob_of_more_than_a_quarter_of_the_cap_is_not_uploaded() -> None:
    fleet = Rooms()
    begin_account(fleet.objects)
    assert not await fleet.rooms[0].take(CAP // 4 + 1)
    assert fleet.needed == []


@in_virtual_time
async def test_sweep_is_asked_for_when_too_little_is_free() -> None:
    fleet = Rooms()
    begin_account(fleet.objects, used=grantable(CAP) - 999)
    assert not await fleet.rooms[0].take(1000)
    assert fleet.needed == [1000, 1000]
    assert account(fleet.objects).granted == 0


@in_virtual_time
async def test_sweep_is_asked_for_when_there_is_no_account() -> None:
    fleet = Rooms()
    assert not await fleet.rooms[0].take(1000)
    assert fleet.needed == [1000, 1000]
    assert SWEEP_STATE not in fleet.objects.by_key


@in_virtual_time
async def test_a_lower_cap_of_this_node_holds_for_its_own_uploads() -> None:
    fleet = Rooms(cap=CAP // 2)
    begin_account(fleet.objects, used=CAP // 2)
    assert not await fleet.rooms[0].take(1)


@in_virtual_time
async def test_unused_bytes_are_given_back_after_a_while() -> None:
    fleet = Rooms()
    begin_account(fleet.objects)
    room = fleet.rooms[0]
    await room.start()
    assert await room.take(1000)
    assert await room.take(500)
    room.ended(1000, is_stored=True)
    await asyncio.sleep(150)
    after = account(fleet.objects)
    assert (after.used, after.landed, after.granted) == (1000, 1000, 500), "the second upload has not ended"
    room.ended(500, is_stored=True)
    await room.close()
    after = account(fleet.objects)
    assert (after.used, after.grants) == (1500, {})
    await room.close()


@in_virtual_time
async def test_failed_upload_counts_as_granted_and_then_as_used() -> None:
    fleet = Rooms()
    begin_account(fleet.objects)
    room = fleet.rooms[0]
    assert await room.take(1000)
    room.ended(1000, is_stored=False)
    await room.give_back()
    assert (account(fleet.objects).used, account(fleet.objects).granted) == (0, 1000)
    await asyncio.sleep(301)
    await room.give_back()
    assert (account(fleet.objects).used, account(fleet.objects).granted) == (1000, 0)


@in_virtual_time
async def test_grant_is_not_used_when_it_was_taken_long_ago() -> None:
    fleet = Rooms()
    begin_account(fleet.objects)
    room = fleet.rooms[0]
    assert await room.take(1000)
    await asyncio.sleep(301)
    first = fleet.objects.by_key[SWEEP_STATE]
    assert await room.take(1000)
    assert fleet.objects.by_key[SWEEP_STATE] != first
    assert account(fleet.objects).grants["node-0"].at > 1.7e9 + 300


@in_virtual_time
async def test_bytes_whose_grant_was_perhaps_written_are_not_used_before_they_are_known() -> None:
    fleet = Rooms()
    begin_account(fleet.objects)
    room = fleet.rooms[0]
    fleet.bucket.loses_responses = True
    with pytest.raises(BucketUnavailable):
        await room.take(1000)
    fleet.bucket.loses_responses = False
    granted = account(fleet.objects).granted
    assert granted == grantable(CAP) // 16
    assert await room.take(1000)
    assert account(fleet.objects).granted == (grantable(CAP) - granted) // 16, "what it does not know it does not keep"


@in_virtual_time
async def test_nodes_that_take_at_the_same_time_get_different_bytes() -> None:
    fleet = Rooms(nodes=8)
    begin_account(fleet.objects)
    assert await asyncio.gather(*(room.take(10_000) for room in fleet.rooms)) == [True] * 8
    after = account(fleet.objects)
    assert len(after.grants) == 8
    assert after.granted <= grantable(CAP)
    assert fleet.needed == []


@in_virtual_time
async def test_account_of_a_newer_version_is_left_alone() -> None:
    fleet = Rooms()
    fleet.objects.write(SWEEP_STATE, b'{"format":2}')
    assert not await fleet.rooms[0].take(1)
    assert fleet.objects.by_key[SWEEP_STATE][1] == b'{"format":2}'
    assert SweepState.decode(b'{"format":2}') is None
