"""Blobs beside and behind a fill: who waits, who is fetched for alone, and what a lying upstream leaves behind."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.errors import HubcacheError
from hubcache.serve import cached_blobs
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.serve.repository_view import RepositoryView
from hubcache.transfer import fills
from hubcache.transfer.fill import MAX_PARALLEL_RANGES
from support.engine import Cache, read, running
from support.standin import Fault, Hub, random_bytes
from support.standin.content import sha256
from support.users import bearer, settled, until

REPO = "library/app"
DATA = random_bytes(500_000)


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cache]:
    monkeypatch.setattr(fills, "_BACKOFF_SECONDS", 0.001)
    async with running(hub, tmp_path / "store", negative_ttl=0.0) as started:
        yield started


def path(digest: str, repo: str = REPO) -> str:
    return f"/v2/{repo}/blobs/{digest}"


async def begin(cache: Cache, digest: str, **headers: str) -> Answer:
    """The head of an answer; its body is to be read or closed."""
    outcome = await cache.engine.service.answer(cache.request(Listener.MIRROR, "GET", path(digest), **headers))
    assert isinstance(outcome, Answer)
    return outcome


# -- ranges beside a fill ---------------------------------------------------------------------------------------------

STARTS = range(200_000, 450_000, 25_000)


class Ranges:
    """A fill that stands still, and ranges far ahead of it that stand still where they are fetched on their own."""

    def __init__(self, hub: Hub, digest: str, fill: Fault, beside: Fault) -> None:
        self.hub = hub
        self.digest = digest
        self.fill = fill
        self.beside = beside

    @property
    def beside_fill(self) -> int:
        """Requests beside the fill's own."""
        return self.hub.count(kind="cdn", method="GET") - 1

    async def ask(self, cache: Cache) -> tuple[Answer, list[Answer], list[asyncio.Task[bytes]]]:
        """The whole blob, the ranges, and what reads them."""
        filler = await begin(cache, self.digest)
        answers = [await begin(cache, self.digest, range=f"bytes={at}-{at + 99}") for at in STARTS]
        return filler, answers, [asyncio.create_task(read(answer)) for answer in answers]


@pytest.fixture
def ranges(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Ranges:
    monkeypatch.setattr(cached_blobs, "FAR_AHEAD", 100_000)
    digest = hub.blob(REPO, DATA)
    fill = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000, times=1))
    return Ranges(hub, digest, fill, hub.faults.add(Fault(kind="cdn", method="GET", pause_after=50)))


async def test_few_ranges_are_fetched_beside_one_fill_at_a_time_and_others_in_their_turn(
    cache: Cache, hub: Hub, ranges: Ranges
) -> None:
    filler, _, reading = await ranges.ask(cache)
    await until(lambda: ranges.beside_fill == MAX_PARALLEL_RANGES)
    await asyncio.wait(reading, timeout=0.1)
    assert ranges.beside_fill == MAX_PARALLEL_RANGES
    hub.faults.remove(ranges.beside)
    assert await asyncio.gather(*reading) == [DATA[at : at + 100] for at in STARTS]
    wanted = [record.header("Range") for record in hub.requests(kind="cdn", method="GET")[1:]]
    assert wanted == [f"bytes={at}-{at + 99}" for at in STARTS], "first come, first served"
    hub.faults.remove(ranges.fill)
    assert await read(filler) == DATA


async def test_range_that_waits_for_its_turn_is_given_by_the_fill_where_that_is_quicker(
    cache: Cache, hub: Hub, ranges: Ranges
) -> None:
    filler, _, reading = await ranges.ask(cache)
    await until(lambda: ranges.beside_fill == MAX_PARALLEL_RANGES)
    hub.faults.remove(ranges.fill)
    assert await read(filler) == DATA
    assert await asyncio.gather(*reading[MAX_PARALLEL_RANGES:]) == [
        DATA[at : at + 100] for at in STARTS[MAX_PARALLEL_RANGES:]
    ]
    assert ranges.beside_fill == MAX_PARALLEL_RANGES
    hub.faults.remove(ranges.beside)
    await asyncio.gather(*reading)


async def test_client_that_leaves_gives_up_its_turn_and_its_place(cache: Cache, hub: Hub, ranges: Ranges) -> None:
    filler, answers, reading = await ranges.ask(cache)
    await until(lambda: ranges.beside_fill == MAX_PARALLEL_RANGES)
    for number in (
        0,
        *range(MAX_PARALLEL_RANGES, len(answers) - 1),
    ):  # one that has a place, all but the last that have none
        reading[number].cancel()
    await asyncio.gather(*(task for task in reading if task.cancelling()), return_exceptions=True)
    await until(lambda: ranges.beside_fill == MAX_PARALLEL_RANGES + 1)
    last = hub.requests(kind="cdn", method="GET")[-1]
    assert last.header("Range") == f"bytes={STARTS[-1]}-{STARTS[-1] + 99}"
    hub.faults.clear()
    assert await reading[-1] == DATA[STARTS[-1] : STARTS[-1] + 100]
    assert await read(filler) == DATA
    await asyncio.gather(*reading, return_exceptions=True)


async def test_range_that_is_refused_beside_the_fill_comes_from_the_fill(
    cache: Cache, hub: Hub, ranges: Ranges
) -> None:
    filler = await begin(cache, ranges.digest)
    hub.faults.remove(ranges.beside)
    refused = hub.faults.add(Fault(kind="blob", status=429))
    reading = asyncio.create_task(read(await begin(cache, ranges.digest, range="bytes=300000-300099")))
    await until(lambda: refused.hits)
    hub.faults.remove(ranges.fill)
    assert await read(filler) == DATA
    assert await reading == DATA[300_000:300_100]


async def test_range_whose_own_request_is_not_answered_comes_from_the_fill(
    cache: Cache, hub: Hub, ranges: Ranges
) -> None:
    filler = await begin(cache, ranges.digest)
    hub.faults.remove(ranges.beside)
    silent = hub.faults.add(Fault(kind="cdn", method="GET", blackhole=True))
    answers = [await begin(cache, ranges.digest, range=f"bytes={at}-{at + 99}") for at in STARTS]
    reading = [asyncio.create_task(read(answer)) for answer in answers]
    await until(lambda: silent.hits == MAX_PARALLEL_RANGES)
    hub.faults.remove(ranges.fill)
    assert await read(filler) == DATA
    assert await asyncio.wait_for(asyncio.gather(*reading), 10) == [DATA[at : at + 100] for at in STARTS]
    assert silent.hits == MAX_PARALLEL_RANGES


async def test_range_near_a_fill_that_stands_still_is_fetched_beside_it_in_the_end(
    cache: Cache, hub: Hub, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_blobs, "_NEAR_SECONDS", 0.05)
    filler = await begin(cache, ranges.digest)
    hub.faults.remove(ranges.beside)
    assert await read(await begin(cache, ranges.digest, range="bytes=50000-50099")) == DATA[50_000:50_100]
    assert ranges.beside_fill == 1
    hub.faults.remove(ranges.fill)
    assert await read(filler) == DATA


async def test_chunks_without_a_gap_share_the_fill_however_slow_it_is(
    cache: Cache, hub: Hub, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containerd's parallel fetch asks for them."""
    monkeypatch.setattr(cached_blobs, "_NEAR_SECONDS", 0.02)
    parts = [(at, at + 20_000) for at in range(0, 100_000, 20_000)]
    asked = [await begin(cache, ranges.digest, range=f"bytes={start}-{end - 1}") for start, end in parts]
    reading = [asyncio.create_task(read(answer)) for answer in asked]
    await asyncio.wait(reading, timeout=0.2)
    assert ranges.beside_fill == 0
    hub.faults.remove(ranges.fill)
    assert await asyncio.gather(*reading) == [DATA[start:end] for start, end in parts]


@pytest.mark.parametrize("stored", [False, True], ids=["running", "stored"])
async def test_blob_that_is_here_costs_no_token(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Credentials are got when something is fetched with them: a token service may be slow, or down."""
    image = hub.image(REPO, "1", [DATA])
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000))
    filler = await begin(cache, image.layers[0])
    if stored:
        hub.faults.remove(fault)
        assert await read(filler) == DATA
        await settled(cache)

    async def never(view: RepositoryView) -> list[str | None]:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(RepositoryView, "download_authorizations", never)
    hub.stop("token")
    cache.engine._tokens._known.clear()
    own = {"authorization": bearer(hub, "bob", REPO)}
    late = await cache.engine.service.answer(cache.request(Listener.PROXY, "GET", path(image.layers[0]), **own))
    assert isinstance(late, Answer)
    hub.faults.remove(fault)
    assert await read(late) == DATA
    if not stored:
        assert await read(filler) == DATA
    assert hub.count(kind="cdn", method="GET") == 1


async def test_head_during_a_fill_asks_nobody(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", [DATA])
    await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1")
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000))
    filler = await begin(cache, image.layers[0])
    hub.reset_log()
    outcome, _ = await cache.ask(Listener.MIRROR, "HEAD", path(image.layers[0]))
    assert isinstance(outcome, Answer)
    assert (outcome.status, outcome.length) == (200, len(DATA))
    assert hub.count() == 0
    hub.faults.remove(fault)
    assert await read(filler) == DATA


async def test_416_gives_the_stored_file_back(cache: Cache, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    await read(await begin(cache, digest))
    await settled(cache)
    for _ in range(3):
        assert (await begin(cache, digest, range="bytes=500000-")).status == 416
        assert (await begin(cache, digest, if_none_match=f'"{digest}"')).status == 304
    assert not cache.engine.store.usage.in_use


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="cdn", status=200, body=b"x" * 400_000),
        Fault(kind="cdn", length=400_000),
        Fault(kind="cdn", status=200, body=b"<html>maintenance</html>"),
    ],
    ids=["too much", "wrong length", "html"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_size_that_the_upstream_made_up_is_not_remembered(
    cache: Cache, hub: Hub, fault: Fault, method: str
) -> None:
    """The blob could never be fetched again: each honest answer would be of another size."""
    data = random_bytes(300_000)
    digest = hub.blob(REPO, data)
    hub.faults.add(fault)
    outcome = await cache.engine.service.answer(cache.request(Listener.MIRROR, method, path(digest)))
    assert isinstance(outcome, Answer)
    if outcome.source is not None:
        await outcome.source.close()
    await settled(cache)
    hub.faults.clear()
    assert await read(await begin(cache, digest)) == data


async def test_upstream_that_breaks_off_after_a_few_bytes_each_time_is_given_up(cache: Cache, hub: Hub) -> None:
    """Or a blob of a gigabyte would become a million requests."""
    digest = hub.blob(REPO, DATA)
    hub.faults.add(Fault(kind="cdn", close_after=500))
    outcome = await begin(cache, digest)
    if outcome.source is not None:
        await outcome.source.close()
    await settled(cache)
    assert hub.count(kind="cdn") <= 50


async def test_blob_without_bytes_is_verified_before_it_is_given(cache: Cache, hub: Hub) -> None:
    digest = hub.blob(REPO, b"some bytes")
    hub.faults.add(Fault(kind="cdn", status=200, body=b""))
    assert (await begin(cache, digest)).status == 502
    hub.faults.clear()
    empty = await begin(cache, hub.blob(REPO, b""))
    assert (empty.status, await read(empty)) == (200, b"")


async def test_fill_that_failed_is_told_as_an_error_to_who_comes_late(cache: Cache, hub: Hub) -> None:
    """Not answered with the same wrong bytes, unverified."""
    digest = hub.blob(REPO, DATA)
    hub.faults.add(Fault(kind="cdn", status=200, body=b"x" * 1000))
    outcome = await begin(cache, digest)
    await settled(cache)
    body = b"" if outcome.source is None else await _read_until_broken(outcome)
    assert body != b"x" * 1000


async def _read_until_broken(outcome: Answer) -> bytes:
    try:
        return await read(outcome)
    except HubcacheError:
        return b""


async def test_sha512_digests_are_served_and_verified(cache: Cache, hub: Hub) -> None:
    digest = "sha512:" + hashlib.sha512(DATA).hexdigest()
    held = hub.memory.repository(REPO)
    held.blobs[digest] = held.blobs[hub.blob(REPO, DATA)]
    for wanted in (Result.MISS, Result.HIT):
        outcome = await begin(cache, digest)
        assert outcome.result is wanted
        assert await read(outcome) == DATA
        await settled(cache)


async def test_store_that_is_closed_streams_uncached_with_ranges(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    async with running(hub, tmp_path / "store") as cache:
        digest = hub.blob(REPO, DATA)
        assert await read(await begin(cache, digest)) == DATA
        part = await begin(cache, digest, range="bytes=-5")
        assert (part.status, await read(part)) == (206, DATA[-5:])
        assert part.headers["Cache-Status"] == "hubcache; fwd=uri-miss"
        assert (await begin(cache, sha256(b"none"))).status == 404
