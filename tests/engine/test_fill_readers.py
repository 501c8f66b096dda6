"""Fills whose clients disconnect: few continue, the others are paused and then cancelled; many requests of one client
do not block other clients."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.registry import HUB_HOST
from hubcache.serve.messages import Answer, Listener
from hubcache.serve.repository_view import RepositoryView
from hubcache.transfer import fill_slots, unread_fills
from hubcache.transfer.fill import Fill
from hubcache.transfer.fills import FillProgress
from support.engine import Cache, read, running
from support.standin import Fault, Hub, random_bytes
from support.users import settled, until

REPO = "library/app"
SIZE = 1_500_000
"""Bytes of a blob: enough that no fill is nearly complete after its first bytes."""


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store", admit_after=3) as started:
        yield started


class Blobs:
    """New blobs, whose transfer pauses after some bytes until `end` is called."""

    def __init__(self, cache: Cache, hub: Hub, *, after: int = 100_000) -> None:
        self.cache = cache
        self.hub = hub
        self.fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=after))

    @staticmethod
    @lru_cache(16)
    def data(number: int) -> bytes:
        return random_bytes(SIZE, f"blob {number}")

    async def request(self, number: int, client: str = "10.0.0.1", **headers: str) -> Answer:
        """Request a blob for a client, and return the head of the answer."""
        digest = self.hub.blob(REPO, self.data(number))
        request = self.cache.request(Listener.MIRROR, "GET", f"/v2/{REPO}/blobs/{digest}", **headers)
        outcome = await self.cache.engine.service.answer(replace(request, client=client))
        assert isinstance(outcome, Answer)
        assert outcome.status in (200, 206)
        return outcome

    def fill(self, number: int) -> Fill | None:
        return self.cache.engine.fills.get(Digest.of(self.data(number)))

    async def disconnect(self, *numbers: int) -> None:
        """Request blobs, read some bytes, and disconnect."""
        for number in numbers:
            answer = await self.request(number)
            assert answer.source is not None
            await answer.source.read()
            await answer.source.close()

    async def stored(self, *numbers: int) -> list[bool]:
        """Return which blobs are in the store in the end."""
        await settled(self.cache)
        return [self.cache.engine.store.has(Digest.of(self.data(number))) for number in numbers]

    def end(self) -> None:
        self.hub.faults.remove(self.fault)


@pytest.fixture
def blobs(cache: Cache, hub: Hub) -> Blobs:
    return Blobs(cache, hub)


async def test_few_fills_continue_without_readers_and_others_are_cancelled(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_fills, "GRACE_SECONDS", 0.1)
    await blobs.disconnect(*range(12))
    blobs.end()
    assert sum(await blobs.stored(*range(12))) == unread_fills.MAX_UNREAD
    assert [await read(await blobs.request(number)) == blobs.data(number) for number in range(12)] == [True] * 12


async def test_paused_fill_downloads_nothing_and_continues_for_a_returning_client(blobs: Blobs, hub: Hub) -> None:
    await blobs.disconnect(*range(unread_fills.MAX_UNREAD + 1))
    blobs.end()
    await until(lambda: len(blobs.cache.engine.fills.progress()) == 1)
    [paused] = blobs.cache.engine.fills.progress()
    assert paused.size is not None
    number = next(number for number in range(5) if blobs.fill(number) is not None)
    rest = await blobs.request(number, range=f"bytes={paused.written}-")
    assert await read(rest) == blobs.data(number)[paused.written :]
    assert all(await blobs.stored(*range(5)))
    assert hub.count(kind="cdn", method="GET") == 5, "each was downloaded once"


async def test_most_complete_fills_continue(cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_fills, "GRACE_SECONDS", 0.05)
    blobs = Blobs(cache, hub, after=50_000)
    blobs.fault.times = unread_fills.MAX_UNREAD
    further = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=300_000))
    await blobs.disconnect(*range(unread_fills.MAX_UNREAD))
    answer = await blobs.request(9)
    fill = blobs.fill(9)
    assert answer.source is not None
    assert fill is not None
    await fill.wait_readable(300_000)
    await answer.source.close()
    hub.faults.remove(further)
    blobs.end()
    assert await blobs.stored(9) == [True]
    assert sum(await blobs.stored(*range(unread_fills.MAX_UNREAD))) == unread_fills.MAX_UNREAD - 1


async def test_fill_of_a_nearly_complete_or_popular_blob_continues(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_fills, "GRACE_SECONDS", 0.05)
    blobs = Blobs(cache, hub, after=SIZE - 700_000)
    for number in range(6):
        answer = await blobs.request(number)
        fill = blobs.fill(number)
        assert fill is not None
        assert answer.source is not None
        await fill.wait_readable(SIZE - 700_000)
        await answer.source.close()
    first_fault = blobs.fault
    popular = Blobs(cache, hub)
    hub.faults.remove(first_fault)
    assert all(await blobs.stored(*range(6)))
    for number in range(10, 18):
        cache.engine.store.popularity.ensure_admitted(Digest.of(popular.data(number)))
    await popular.disconnect(*range(10, 18))
    popular.end()
    assert all(await popular.stored(*range(10, 18)))


async def test_unread_fills_of_popular_blobs_are_bounded(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_fills, "GRACE_SECONDS", 0.05)
    numbers = range(unread_fills.MAX_WANTED + 5)
    for number in numbers:
        blobs.cache.engine.store.popularity.ensure_admitted(Digest.of(blobs.data(number)))
    await blobs.disconnect(*numbers)
    blobs.end()
    assert sum(await blobs.stored(*numbers)) == unread_fills.MAX_WANTED


async def test_prefetch_counts_as_a_reader(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_fills, "GRACE_SECONDS", 0.0)
    upstream = blobs.cache.engine.service._upstreams[blobs.cache.settings.registries[0].host]
    digests = [Digest.parse(blobs.hub.blob(REPO, blobs.data(number))) for number in range(6)]
    fetching = [
        asyncio.create_task(blobs.cache.engine._blobs.fetch(RepositoryView(upstream, REPO), digest))
        for digest in digests
    ]
    await until(lambda: [one.readers > 0 for one in blobs.cache.engine.fills.progress()] == [True] * 6)
    await blobs.disconnect(*range(6))
    blobs.end()
    await asyncio.gather(*fetching)
    assert all(await blobs.stored(*range(6)))


async def test_progress_has_size_bytes_and_readers(blobs: Blobs) -> None:
    first, second = await blobs.request(1), await blobs.request(1, client="10.0.0.2")
    fill = blobs.fill(1)
    assert fill is not None
    await fill.wait_readable(100_000)
    source = (HUB_HOST, fill.repository, fill.started)
    assert blobs.cache.engine.fills.progress() == [FillProgress(fill.digest, SIZE, 100_000, 2, *source, False)]
    blobs.end()
    assert await read(first) == await read(second) == blobs.data(1)
    await settled(blobs.cache)
    assert blobs.cache.engine.fills.progress() == []


async def test_flood_of_one_client_does_not_block_another(blobs: Blobs) -> None:
    flood = [asyncio.create_task(blobs.request(number)) for number in range(fill_slots.MAX_FILLS + 10)]
    await until(lambda: len(blobs.cache.engine.fills.progress()) == len(flood), 60)
    layers = [asyncio.create_task(blobs.request(number, client="10.0.0.2")) for number in (1000, 1001, 1002)]
    for answer in await asyncio.wait_for(asyncio.gather(*layers), 60):
        assert answer.source is not None
        await answer.source.close()
    assert sum(task.done() for task in flood) < fill_slots.MAX_FILLS
    blobs.end()
    assert all([await read(await task) == blobs.data(number) for number, task in enumerate(flood)])


async def test_fill_that_waits_for_a_slot_is_cancelled_when_its_client_disconnects(blobs: Blobs, hub: Hub) -> None:
    flood = [asyncio.create_task(blobs.request(number)) for number in range(fill_slots.MAX_FILLS)]
    await until(lambda: sum(task.done() for task in flood) == 48, 60)
    requests = hub.count(kind="cdn", method="GET")
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    await until(lambda: len(blobs.cache.engine.fills.progress()) == 48)
    assert hub.count(kind="cdn", method="GET") == requests
    blobs.end()
    for task in flood:
        if not task.cancelled():
            await read(task.result())


async def test_fill_that_is_cancelled_before_it_starts_takes_no_slot(cache: Cache) -> None:
    fills = cache.engine.fills
    for number in range(fill_slots.MAX_FILLS * 2):
        fill = fills.start(Digest.of(str(number).encode()), None, lambda _: cast(Any, None))
        fills._cancel_fill(fill)
    await settled(cache)
    assert fills.progress() == []
    assert not fills._slots._held


async def test_paused_fill_is_cancelled_at_once_when_another_waits_for_a_slot(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_fills, "GRACE_SECONDS", 600.0)
    await blobs.disconnect(*range(48))
    assert len(blobs.cache.engine.fills.progress()) == 48
    late = asyncio.create_task(blobs.request(100))
    blobs.end()
    assert await read(await asyncio.wait_for(late, 60)) == blobs.data(100)


async def test_waiting_fill_gets_the_slot_of_a_disconnected_client(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_fills, "GRACE_SECONDS", 600.0)
    flood = await asyncio.gather(*(blobs.request(number) for number in range(48)))
    late = asyncio.create_task(blobs.request(100))
    await until(lambda: blobs.fill(100))
    for answer in flood[: unread_fills.MAX_UNREAD + 1]:
        assert answer.source is not None
        await answer.source.close()
    answer = await asyncio.wait_for(late, 60)
    blobs.end()
    assert await read(answer) == blobs.data(100)
    for answer in flood[unread_fills.MAX_UNREAD + 1 :]:
        assert answer.source is not None
        await answer.source.close()


async def test_fill_that_was_just_cancelled_is_granted_no_slot(cache: Cache) -> None:
    """Before the cancelled fill's task has ended, the slot of another fill becomes free."""

    @asynccontextmanager
    async def hang(_: int) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    fills = cache.engine.fills
    flood = [
        fills.start(Digest.of(str(number).encode()), None, hang, "10.0.0.1") for number in range(fill_slots.MAX_FILLS)
    ]
    await asyncio.sleep(0)
    granted = [fill for fill in flood if not fills._jobs[fill].ticket.is_waiting]
    waiting = [fill for fill in flood if fill not in granted]
    ticket = fills._jobs[granted[0]].ticket
    fills._cancel_fill(waiting[0])
    fills._slots.release(ticket)
    await until(lambda: waiting[0] not in fills._tasks.values())
    assert not fills._jobs[waiting[1]].ticket.is_waiting
    assert fills._slots._held.total() == len(granted)
