"""Fills: one download for all readers, verified before any of them gets the last byte."""

import asyncio
import os

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream
from hubcache.store.usage import size_on_disk
from hubcache.transfer.fill import Fill
from support.fills import DIGEST, LAYER, REPO, FillHarness, fill_harness_fixture
from support.standin import Fault, Hub
from support.stores import MIB

harness = fill_harness_fixture()


async def test_many_readers_share_one_download_and_get_every_byte(hub: Hub, harness: FillHarness) -> None:
    hub.faults.add(Fault(kind="cdn", rate=4_000_000))
    fills = [harness.start() for _ in range(20)]
    assert all(fill is fills[0] for fill in fills)
    assert await asyncio.gather(*(harness.read(fill) for fill in fills)) == [LAYER] * 20
    assert (hub.count(kind="blob", status=307), hub.count(kind="cdn")) == (1, 1)
    await fills[0].wait_stored()
    blob = await harness.store.open_blob(DIGEST)
    assert blob is not None
    assert os.pread(blob.fd, MIB, 0) == LAYER
    blob.close()
    assert harness.store.usage.used == size_on_disk(len(LAYER))
    assert (harness.line.seen.in_flight, harness.line.seen.ended) == ([1, 0], [None])


async def test_first_bytes_are_readable_before_the_last_have_arrived(hub: Hub, harness: FillHarness) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1000))
    fill = harness.start()
    assert await fill.wait_opened() == len(LAYER)
    source = harness.reader(fill)
    assert LAYER.startswith(first := await source.read())
    assert len(first) == 1000
    hub.faults.remove(fault)
    await source.close()
    await fill.wait_stored()


async def test_fill_continues_when_its_readers_are_cancelled(hub: Hub, harness: FillHarness) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1000))
    fill = harness.start()
    readers = [asyncio.ensure_future(harness.read(fill)) for _ in range(3)]
    await fill.wait_readable(1000)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    hub.faults.remove(fault)
    await fill.wait_stored()
    assert harness.store.has(DIGEST)


async def test_task_that_waits_for_all_bytes_is_no_reader(hub: Hub, harness: FillHarness) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1000))
    fill = harness.start()
    waiting = asyncio.create_task(fill.wait_received(asyncio.Event()))
    await fill.wait_readable(1000)
    assert (fill.readers, waiting.done()) == (0, False)
    hub.faults.remove(fault)
    await waiting
    assert (fill.verified, fill.readable) == (True, len(LAYER))
    await fill.wait_stored()


async def test_wait_for_all_bytes_ends_when_the_fill_fails(hub: Hub, harness: FillHarness) -> None:
    hub.faults.add(Fault(kind="cdn", corrupt_at=1000))
    fill = harness.start()
    await fill.wait_received(asyncio.Event())
    assert (fill.verified, fill.error is not None) == (False, True)


async def test_wait_for_all_bytes_ends_when_it_is_abandoned(hub: Hub, harness: FillHarness) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1000))
    fill, abandoned = harness.start(), asyncio.Event()
    waiting = asyncio.create_task(fill.wait_received(abandoned))
    await fill.wait_readable(1000)
    abandoned.set()
    await waiting
    assert (fill.verified, fill.error) == (False, None)
    hub.faults.remove(fault)
    await fill.wait_stored()


async def test_last_byte_is_held_back_until_the_digest_is_verified(hub: Hub, harness: FillHarness) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=len(LAYER) - 1))
    fill = harness.start()
    await fill.wait_readable(len(LAYER) - 1)
    hub.faults.remove(fault)
    assert await harness.read(fill) == LAYER
    assert fill.verified


@pytest.mark.parametrize(("start", "end"), [(0, 1), (699_999, 700_000), (100_000, 600_000)])
async def test_reader_may_have_any_range(harness: FillHarness, start: int, end: int) -> None:
    assert await harness.read(harness.start(), start, end) == LAYER[start:end]


async def test_empty_blob_is_stored(hub: Hub, harness: FillHarness) -> None:
    empty = Digest.of(b"")
    hub.blob(REPO, b"")
    fill = harness.fills.start(empty, None, lambda start: harness.line.upstream.download_blob(REPO, empty, start))
    await fill.wait_stored()
    assert harness.store.blob_size(empty) == 0


async def test_blob_without_content_length_is_stored_when_complete(hub: Hub, harness: FillHarness) -> None:
    hub.faults.add(Fault(kind="cdn", chunked=True))
    fill = harness.start()
    assert await harness.read(fill) == LAYER
    await fill.wait_stored()
    assert harness.store.usage.used == size_on_disk(len(LAYER))


async def test_blob_without_content_length_is_readable_early_with_the_manifests_size(
    hub: Hub, harness: FillHarness
) -> None:
    fault = hub.faults.add(Fault(kind="cdn", chunked=True, pause_after=1000))
    fill = harness.start(len(LAYER))
    assert await fill.wait_opened() == len(LAYER)
    await fill.wait_readable(1000)
    hub.faults.remove(fault)
    await fill.wait_stored()


async def test_ended_fill_gives_no_reader_the_bytes_of_another_file(harness: FillHarness) -> None:
    """Between `wait_opened` and the first read, a small blob may arrive completely, and its descriptor may be
    reused."""
    fill = harness.start()
    await fill.wait_stored()
    assert fill.staged is not None
    assert fill.staged.closed
    reused = [os.open(harness.directory / "lock", os.O_RDONLY) for _ in range(8)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        harness.reader(fill)
    for descriptor in reused:
        os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1])
async def test_blob_without_bytes_before_the_last_is_not_open_before_it_is_verified(size: int) -> None:
    """Nothing could be read of it earlier, and an empty answer would be complete at once."""
    fill = Fill(Digest.of(b"some bytes"))
    opened = asyncio.create_task(fill.wait_opened())
    fill.size = size
    fill.notify()
    await asyncio.sleep(0)
    fill.error = BadUpstream("wrong digest")
    fill.notify()
    with pytest.raises(BadUpstream):
        await opened


async def test_wait_for_bytes_ends_after_patience() -> None:
    fill = Fill(DIGEST)
    await asyncio.wait_for(fill.wait_readable(1, 0.01), 10)
    assert fill._waiting == set()


async def test_only_readers_whose_bytes_have_arrived_are_woken() -> None:
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


async def test_error_raised_to_many_readers_keeps_none_of_their_frames() -> None:
    fill = Fill(DIGEST)
    fill.error = BadUpstream("broken", {"digest": str(DIGEST)})
    errors = []
    for _ in range(3):
        with pytest.raises(BadUpstream, match="broken") as caught:
            await fill.wait_readable(1)
        errors.append(caught.value)
    assert fill.error.__traceback__ is None
    assert len(set(map(id, errors))) == 3
    assert [error.detail for error in errors] == [{"digest": str(DIGEST)}] * 3


async def test_bytes_are_counted_for_the_same_host_as_requests(
    hub: Hub, harness: FillHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = set()
    monkeypatch.setattr(harness.line.seen, "upstream_bytes", lambda host, _: hosts.add(host))
    await harness.start().wait_stored()
    assert hosts == {hub.url("cdn").removeprefix("http://")}, "with its port"
