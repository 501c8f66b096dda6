"""Blobs while they are filled: ranges that wait or are fetched in parallel, and upstreams that send wrong data."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.errors import HubcacheError
from hubcache.serve import cached_blobs
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.serve.repository_view import RepositoryView
from hubcache.transfer import fill, fills
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
    """Request a blob, and return the head of the answer; its body must be read or closed."""
    outcome = await cache.engine.service.answer(cache.request(Listener.MIRROR, "GET", path(digest), **headers))
    assert isinstance(outcome, Answer)
    return outcome


# -- ranges in parallel to a fill -------------------------------------------------------------------------------------

STARTS = range(200_000, 450_000, 25_000)


class Ranges:
    """A fill whose transfer pauses, and ranges far ahead of it, whose separate transfers pause, too."""

    def __init__(self, hub: Hub, digest: str, fill: Fault, parallel: Fault) -> None:
        self.hub = hub
        self.digest = digest
        self.fill = fill
        self.parallel = parallel

    @property
    def parallel_requests(self) -> int:
        """Number of requests in addition to the fill's own."""
        return self.hub.count(kind="cdn", method="GET") - 1

    async def request(self, cache: Cache) -> tuple[Answer, list[Answer], list[asyncio.Task[bytes]]]:
        """Request the whole blob and the ranges; return the answers, and tasks that read the ranges."""
        whole = await begin(cache, self.digest)
        answers = [await begin(cache, self.digest, range=f"bytes={at}-{at + 99}") for at in STARTS]
        return whole, answers, [asyncio.create_task(read(answer)) for answer in answers]


@pytest.fixture
def ranges(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Ranges:
    monkeypatch.setattr(cached_blobs, "FAR_AHEAD", 100_000)
    digest = hub.blob(REPO, DATA)
    fill = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000, times=1))
    return Ranges(hub, digest, fill, hub.faults.add(Fault(kind="cdn", method="GET", pause_after=50)))


async def test_ranges_in_parallel_to_a_fill_are_bounded_and_fetched_in_order(
    cache: Cache, hub: Hub, ranges: Ranges
) -> None:
    whole, _, reading = await ranges.request(cache)
    await until(lambda: ranges.parallel_requests == MAX_PARALLEL_RANGES)
    await asyncio.wait(reading, timeout=0.1)
    assert ranges.parallel_requests == MAX_PARALLEL_RANGES
    hub.faults.remove(ranges.parallel)
    assert await asyncio.gather(*reading) == [DATA[at : at + 100] for at in STARTS]
    sent = [record.header("Range") for record in hub.requests(kind="cdn", method="GET")[1:]]
    positions = [
        sent.index(f"bytes={at}-{at + 99}") for at in STARTS
    ]  # those that run together may arrive in any order
    assert all(abs(position - number) < MAX_PARALLEL_RANGES for number, position in enumerate(positions))
    hub.faults.remove(ranges.fill)
    assert await read(whole) == DATA


async def test_waiting_range_is_read_from_the_fill_when_that_is_faster(cache: Cache, hub: Hub, ranges: Ranges) -> None:
    whole, _, reading = await ranges.request(cache)
    await until(lambda: ranges.parallel_requests == MAX_PARALLEL_RANGES)
    hub.faults.remove(ranges.fill)
    assert await read(whole) == DATA
    assert await asyncio.gather(*reading[MAX_PARALLEL_RANGES:]) == [
        DATA[at : at + 100] for at in STARTS[MAX_PARALLEL_RANGES:]
    ]
    assert ranges.parallel_requests == MAX_PARALLEL_RANGES
    hub.faults.remove(ranges.parallel)
    await asyncio.gather(*reading)


async def test_disconnected_client_releases_its_slot_and_its_place_in_the_queue(
    cache: Cache, hub: Hub, ranges: Ranges
) -> None:
    whole, answers, reading = await ranges.request(cache)
    await until(lambda: ranges.parallel_requests == MAX_PARALLEL_RANGES)
    # Disconnect the client of one range that has a slot, and those of all waiting ranges but the last.
    for number in (0, *range(MAX_PARALLEL_RANGES, len(answers) - 1)):
        reading[number].cancel()
    await asyncio.gather(*(task for task in reading if task.cancelling()), return_exceptions=True)
    await until(lambda: ranges.parallel_requests == MAX_PARALLEL_RANGES + 1)
    last = hub.requests(kind="cdn", method="GET")[-1]
    assert last.header("Range") == f"bytes={STARTS[-1]}-{STARTS[-1] + 99}"
    hub.faults.clear()
    assert await reading[-1] == DATA[STARTS[-1] : STARTS[-1] + 100]
    assert await read(whole) == DATA
    await asyncio.gather(*reading, return_exceptions=True)


async def test_range_that_is_refused_upstream_is_read_from_the_fill(cache: Cache, hub: Hub, ranges: Ranges) -> None:
    whole = await begin(cache, ranges.digest)
    hub.faults.remove(ranges.parallel)
    refused = hub.faults.add(Fault(kind="blob", status=429))
    reading = asyncio.create_task(read(await begin(cache, ranges.digest, range="bytes=300000-300099")))
    await until(lambda: refused.hits)
    hub.faults.remove(ranges.fill)
    assert await read(whole) == DATA
    assert await reading == DATA[300_000:300_100]


async def test_range_whose_request_is_not_answered_is_read_from_the_fill(
    cache: Cache, hub: Hub, ranges: Ranges
) -> None:
    whole = await begin(cache, ranges.digest)
    hub.faults.remove(ranges.parallel)
    silent = hub.faults.add(Fault(kind="cdn", method="GET", blackhole=True))
    answers = [await begin(cache, ranges.digest, range=f"bytes={at}-{at + 99}") for at in STARTS]
    reading = [asyncio.create_task(read(answer)) for answer in answers]
    await until(lambda: silent.hits == MAX_PARALLEL_RANGES)
    hub.faults.remove(ranges.fill)
    assert await read(whole) == DATA
    assert await asyncio.wait_for(asyncio.gather(*reading), 10) == [DATA[at : at + 100] for at in STARTS]


async def test_range_near_a_stalled_fill_is_fetched_in_parallel_after_a_while(
    cache: Cache, hub: Hub, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_blobs, "_NEAR_SECONDS", 0.05)
    monkeypatch.setattr(fill, "_MAX_CHUNK", len(DATA) - 1)  # so that the whole blob is not a chunk, which would share
    whole = await begin(cache, ranges.digest)
    hub.faults.remove(ranges.parallel)
    assert await read(await begin(cache, ranges.digest, range="bytes=50000-50099")) == DATA[50_000:50_100]
    sent = [record.header("Range") for record in hub.requests(kind="cdn", method="GET")]
    assert sent == [None, "bytes=50000-50099"]
    hub.faults.remove(ranges.fill)
    assert await read(whole) == DATA


async def test_contiguous_chunks_share_even_a_slow_fill(
    cache: Cache, hub: Hub, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd requests such chunks in its parallel fetch."""
    monkeypatch.setattr(cached_blobs, "_NEAR_SECONDS", 0.02)
    parts = [(at, at + 20_000) for at in range(0, 100_000, 20_000)]
    answers = [await begin(cache, ranges.digest, range=f"bytes={start}-{end - 1}") for start, end in parts]
    reading = [asyncio.create_task(read(answer)) for answer in answers]
    await asyncio.wait(reading, timeout=0.2)
    assert ranges.parallel_requests == 0
    hub.faults.remove(ranges.fill)
    assert await asyncio.gather(*reading) == [DATA[start:end] for start, end in parts]


@pytest.mark.parametrize("stored", [False, True], ids=["running", "stored"])
async def test_stored_or_arriving_blob_needs_no_token(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Tokens are fetched only for requests upstream: a token service may be slow or down."""
    image = hub.image(REPO, "1", [DATA])
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000))
    whole = await begin(cache, image.layers[0])
    if stored:
        hub.faults.remove(fault)
        assert await read(whole) == DATA
        await settled(cache)

    async def never(*_: object) -> None:
        raise AssertionError("no request is needed")

    monkeypatch.setattr(RepositoryView, "try_credentials", never)
    hub.stop("token")
    cache.engine._clients._tokens._known.clear()
    own = {"authorization": bearer(hub, "bob", REPO)}
    late = await cache.engine.service.answer(cache.request(Listener.PROXY, "GET", path(image.layers[0]), **own))
    assert isinstance(late, Answer)
    hub.faults.remove(fault)
    assert await read(late) == DATA
    if not stored:
        assert await read(whole) == DATA
    assert hub.count(kind="cdn", method="GET") == 1


async def test_head_during_a_fill_sends_no_request(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", [DATA])
    await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1")
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000))
    whole = await begin(cache, image.layers[0])
    hub.reset_log()
    outcome, _ = await cache.ask(Listener.MIRROR, "HEAD", path(image.layers[0]))
    assert isinstance(outcome, Answer)
    assert (outcome.status, outcome.length) == (200, len(DATA))
    assert hub.count() == 0
    hub.faults.remove(fault)
    assert await read(whole) == DATA


async def test_unsatisfiable_range_releases_the_stored_file(cache: Cache, hub: Hub) -> None:
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
async def test_wrong_size_of_an_upstream_is_not_remembered(cache: Cache, hub: Hub, fault: Fault, method: str) -> None:
    """If it were remembered, every later correct response would be refused because of its size."""
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


async def test_fill_fails_when_the_upstream_always_breaks_off_after_a_few_bytes(cache: Cache, hub: Hub) -> None:
    """Otherwise a blob of a gigabyte would cost a million requests."""
    digest = hub.blob(REPO, DATA)
    hub.faults.add(Fault(kind="cdn", close_after=500))
    outcome = await begin(cache, digest)
    if outcome.source is not None:
        await outcome.source.close()
    await settled(cache)
    assert hub.count(kind="cdn") <= 50


async def test_empty_blob_is_verified_before_it_is_served(cache: Cache, hub: Hub) -> None:
    digest = hub.blob(REPO, b"some bytes")
    hub.faults.add(Fault(kind="cdn", status=200, body=b""))
    assert (await begin(cache, digest)).status == 502
    hub.faults.clear()
    empty = await begin(cache, hub.blob(REPO, b""))
    assert (empty.status, await read(empty)) == (200, b"")


async def test_failed_fill_is_an_error_for_later_readers(cache: Cache, hub: Hub) -> None:
    """Otherwise they would get the same wrong bytes without verification."""
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


async def test_blobs_are_streamed_uncached_with_ranges_while_the_store_is_closed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    async with running(hub, tmp_path / "store") as cache:
        digest = hub.blob(REPO, DATA)
        assert await read(await begin(cache, digest)) == DATA
        part = await begin(cache, digest, range="bytes=-5")
        assert (part.status, await read(part)) == (206, DATA[-5:])
        assert part.headers["Cache-Status"] == "hubcache; fwd=uri-miss"
        assert (await begin(cache, sha256(b"none"))).status == 404
