"""Blobs beside and behind a fill: who waits, who is fetched for alone, and what a lying upstream leaves behind."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.errors import HubcacheError
from hubcache.serve import blobs
from hubcache.serve.messages import Answer, Door, Result
from hubcache.serve.view import View
from hubcache.transfer import fill
from people import bearer, settled, until
from rig import Cache, read, running
from standin import Fault, Hub, random_bytes
from standin.content import sha256

REPO = "library/app"
DATA = random_bytes(500_000)


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cache]:
    monkeypatch.setattr(fill, "_BACKOFF_SECONDS", 0.001)
    async with running(hub, tmp_path / "store", negative_ttl=0.0) as started:
        yield started


def path(digest: str, repo: str = REPO) -> str:
    return f"/v2/{repo}/blobs/{digest}"


async def begin(cache: Cache, digest: str, **headers: str) -> Answer:
    """The head of an answer; its body is to be read or closed."""
    outcome = await cache.engine.service.answer(cache.request(Door.MIRROR, "GET", path(digest), **headers))
    assert isinstance(outcome, Answer)
    return outcome


async def test_ranges_beside_one_fill_are_limited_and_the_rest_waits_for_it(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "FAR_AHEAD", 100_000)
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000, times=1))
    filler = await begin(cache, digest)
    ranges = [await begin(cache, digest, range=f"bytes={at}-{at + 99}") for at in range(200_000, 450_000, 25_000)]
    reading = [asyncio.create_task(read(answer)) for answer in ranges]
    await until(lambda: sum(task.done() for task in reading) == 4)
    await asyncio.wait(reading, timeout=0.2)
    done = [task.done() for task in reading]
    assert done == [True] * 4 + [False] * 6
    hub.faults.remove(fault)
    assert await read(filler) == DATA
    assert [await task for task in reading] == [DATA[at : at + 100] for at in range(200_000, 450_000, 25_000)]
    assert hub.count(kind="cdn", method="GET") == 5


async def test_range_that_was_fetched_beside_makes_room_for_the_next(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "FAR_AHEAD", 100_000)
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000, times=1))
    filler = await begin(cache, digest)
    for at in range(200_000, 450_000, 25_000):
        async with asyncio.timeout(5):
            assert await read(await begin(cache, digest, range=f"bytes={at}-{at + 99}")) == DATA[at : at + 100]
    hub.faults.remove(fault)
    assert await read(filler) == DATA


@pytest.mark.parametrize("stored", [False, True], ids=["running", "stored"])
async def test_blob_that_is_here_costs_no_token(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Credentials are got when something is fetched with them: a token service may be slow, or down."""
    image = hub.image(REPO, "1", [DATA])
    assert (await cache.get(Door.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000))
    filler = await begin(cache, image.layers[0])
    if stored:
        hub.faults.remove(fault)
        assert await read(filler) == DATA
        await settled(cache)

    async def never(view: View) -> list[str | None]:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(View, "authorizations", never)
    hub.stop("token")
    cache.engine._tokens._known.clear()
    own = {"authorization": bearer(hub, "bob", REPO)}
    late = await cache.engine.service.answer(cache.request(Door.PROXY, "GET", path(image.layers[0]), **own))
    assert isinstance(late, Answer)
    hub.faults.remove(fault)
    assert await read(late) == DATA
    if not stored:
        assert await read(filler) == DATA
    assert hub.count(kind="cdn", method="GET") == 1


async def test_head_during_a_fill_asks_nobody(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", [DATA])
    await cache.get(Door.MIRROR, f"/v2/{REPO}/manifests/1")
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000))
    filler = await begin(cache, image.layers[0])
    hub.reset_log()
    outcome, _ = await cache.ask(Door.MIRROR, "HEAD", path(image.layers[0]))
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
    assert not cache.engine.store.ledger.in_use


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
    outcome = await cache.engine.service.answer(cache.request(Door.MIRROR, method, path(digest)))
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
