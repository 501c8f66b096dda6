"""Fills: one fetch for all, verified before anybody has the last byte."""

import asyncio
import os

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream
from hubcache.store.usage import size_on_disk
from hubcache.transfer.fill import Fill
from support.fills import DIGEST, LAYER, REPO, Room, room_fixture
from support.standin import Fault, Hub
from support.stores import MIB

room = room_fixture()


async def test_many_readers_cost_one_fetch_and_all_get_every_byte(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", rate=4_000_000))
    fills = [room.start() for _ in range(20)]
    assert all(fill is fills[0] for fill in fills)
    assert await asyncio.gather(*(room.read(fill) for fill in fills)) == [LAYER] * 20
    assert (hub.count(kind="blob", status=307), hub.count(kind="cdn")) == (1, 1)
    await fills[0].wait_stored()
    blob = await room.store.open_blob(DIGEST)
    assert blob is not None
    assert os.pread(blob.fd, MIB, 0) == LAYER
    blob.close()
    assert room.store.usage.used == size_on_disk(len(LAYER))
    assert (room.line.seen.in_flight, room.line.seen.ended) == ([1, 0], [None])


async def test_the_first_bytes_are_there_long_before_the_last(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1000))
    fill = room.start()
    assert await fill.wait_opened() == len(LAYER)
    source = room.reader(fill)
    assert LAYER.startswith(first := await source.read())
    assert len(first) == 1000
    hub.faults.remove(fault)
    await source.close()
    await fill.wait_stored()


async def test_readers_that_leave_do_not_end_the_fill(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1000))
    fill = room.start()
    readers = [asyncio.ensure_future(room.read(fill)) for _ in range(3)]
    await fill.wait_readable(1000)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    hub.faults.remove(fault)
    await fill.wait_stored()
    assert room.store.has(DIGEST)


async def test_the_last_byte_is_held_back_until_all_is_verified(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=len(LAYER) - 1))
    fill = room.start()
    await fill.wait_readable(len(LAYER) - 1)
    hub.faults.remove(fault)
    assert await room.read(fill) == LAYER
    assert fill.verified


@pytest.mark.parametrize(("start", "end"), [(0, 1), (699_999, 700_000), (100_000, 600_000)])
async def test_a_reader_may_begin_and_end_anywhere(room: Room, start: int, end: int) -> None:
    assert await room.read(room.start(), start, end) == LAYER[start:end]


async def test_an_empty_blob_is_filled_like_any_other(hub: Hub, room: Room) -> None:
    empty = Digest.of(b"")
    hub.blob(REPO, b"")
    fill = room.fills.start(empty, None, lambda start: room.line.upstream.open_blob(REPO, empty, start))
    await fill.wait_stored()
    assert room.store.blob_size(empty) == 0


async def test_a_blob_of_hidden_length_is_stored_when_it_is_complete(hub: Hub, room: Room) -> None:
    hub.faults.add(Fault(kind="cdn", chunked=True))
    fill = room.start()
    assert await room.read(fill) == LAYER
    await fill.wait_stored()
    assert room.store.usage.used == size_on_disk(len(LAYER))


async def test_a_manifests_size_makes_a_blob_of_hidden_length_readable_early(hub: Hub, room: Room) -> None:
    fault = hub.faults.add(Fault(kind="cdn", chunked=True, pause_after=1000))
    fill = room.start(len(LAYER))
    assert await fill.wait_opened() == len(LAYER)
    await fill.wait_readable(1000)
    hub.faults.remove(fault)
    await fill.wait_stored()


async def test_a_fill_that_has_ended_says_so_and_gives_no_reader_another_files_bytes(room: Room) -> None:
    """Between learning the size and beginning to read, a small blob may have arrived and its descriptor been reused."""
    fill = room.start()
    await fill.wait_stored()
    assert fill.staged is not None
    assert fill.staged.closed
    reused = [os.open(room.directory / "lock", os.O_RDONLY) for _ in range(8)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        room.reader(fill)
    for descriptor in reused:
        os.close(descriptor)


async def test_waiting_for_bytes_ends_with_patience() -> None:
    fill = Fill(DIGEST)
    await asyncio.wait_for(fill.wait_readable(1, 0.01), 10)
    assert fill._waiting == set()


async def test_only_those_are_woken_whose_bytes_have_come() -> None:
    fill = Fill(DIGEST)
    near, far = (asyncio.ensure_future(fill.wait_readable(count)) for count in (10, 20))
    await asyncio.sleep(0)
    fill.verified = True
    fill.advance(10)
    await asyncio.wait_for(near, 10)
    assert not far.done()
    fill.error = BadUpstream("broken")
    fill.notify()
    with pytest.raises(BadUpstream):
        await far


async def test_error_that_many_are_told_keeps_none_of_their_frames() -> None:
    fill = Fill(DIGEST)
    fill.error = BadUpstream("broken", {"digest": str(DIGEST)})
    told = []
    for _ in range(3):
        with pytest.raises(BadUpstream, match="broken") as caught:
            await fill.wait_readable(1)
        told.append(caught.value)
    assert fill.error.__traceback__ is None
    assert len(set(map(id, told))) == 3
    assert [error.detail for error in told] == [{"digest": str(DIGEST)}] * 3


async def test_bytes_are_counted_for_the_host_for_which_requests_are(
    hub: Hub, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = set()
    monkeypatch.setattr(room.line.seen, "upstream_bytes", lambda host, _: hosts.add(host))
    await room.start().wait_stored()
    assert hosts == {hub.url("cdn").removeprefix("http://")}, "with its port"
