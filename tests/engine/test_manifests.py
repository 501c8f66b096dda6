"""Manifests over time: freshness of tags, clocks that are set, and answers that must not be remembered."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Answer, Change, Listener, Result
from support.engine import ACCEPT, Cache, running
from support.standin import Fault, Hub, Image
from support.users import Clock, until

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/1"


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store", tag_ttl=60.0) as started:
        yield started


@pytest.fixture
def clock(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, cache)


def image(hub: Hub, number: int = 1, tag: str | None = "1") -> Image:
    return hub.image(REPO, tag, annotations={"number": str(number)})


async def result(cache: Cache, path: str = TAG, method: str = "GET") -> Result:
    outcome, _ = await cache.ask(Listener.MIRROR, method, path)
    assert isinstance(outcome, Answer)
    assert outcome.status == 200
    return outcome.result


async def test_tag_is_fresh_for_its_lifetime_and_then_validated(cache: Cache, hub: Hub, clock: Clock) -> None:
    image(hub)
    found = []
    for ahead in (0, 59, 61, 100, 122):
        clock.ahead = ahead
        found.append(await result(cache))
    assert found == [Result.MISS, Result.HIT, Result.REVALIDATED, Result.HIT, Result.REVALIDATED]


async def test_head_and_get_share_the_lifetime(cache: Cache, hub: Hub) -> None:
    current = image(hub)
    assert await result(cache, method="HEAD") is Result.MISS
    hub.reset_log()
    assert await result(cache, method="HEAD") is Result.HIT
    assert hub.count() == 0
    status, body = await cache.get(Listener.MIRROR, TAG)
    assert (status, body) == (200, current.manifest)


async def test_tag_is_stale_after_the_clock_was_set_back(cache: Cache, hub: Hub, clock: Clock) -> None:
    """Otherwise it would be fresh until the clock catches up."""
    image(hub)
    clock.ahead = 86400
    await result(cache)
    clock.ahead = 0
    assert await result(cache) is Result.REVALIDATED
    assert await result(cache) is Result.HIT


async def test_changed_lifetime_applies_to_known_tags(cache: Cache, hub: Hub) -> None:
    image(hub)
    await result(cache)
    cache.apply(tag_ttl=0.0)
    assert await result(cache) is Result.REVALIDATED
    cache.apply(tag_ttl=60.0)
    assert await result(cache) is Result.HIT


async def test_lifetime_begins_with_the_request_and_not_with_the_answer(cache: Cache, hub: Hub, clock: Clock) -> None:
    """The tag may have moved in between."""
    image(hub)
    fault = hub.faults.add(Fault(kind="manifest", pause_after=0))
    requesting = asyncio.create_task(result(cache))
    await until(lambda: hub.count(kind="manifest", status=200))
    clock.ahead = 50
    hub.faults.remove(fault)
    await requesting
    clock.ahead = 61
    assert await result(cache) is Result.REVALIDATED


async def test_tag_that_is_pushed_during_a_request_is_requested_again(cache: Cache, hub: Hub) -> None:
    image(hub, 1)
    fault = hub.faults.add(Fault(kind="manifest", pause_after=0))
    requesting = asyncio.create_task(cache.get(Listener.MIRROR, TAG))
    await until(lambda: hub.count(kind="manifest", status=200))
    moved = image(hub, 2)
    await cache.engine.service.content_changed(cache.settings.registries[0], Change(REPO, "1"))
    hub.faults.remove(fault)
    await requesting
    assert (await cache.get(Listener.MIRROR, TAG))[1] == moved.manifest


async def test_accept_that_differs_only_in_older_types_shares_the_answer(cache: Cache, hub: Hub) -> None:
    """dockerd and containerd list the same four types besides others."""
    image(hub)
    await result(cache)
    hub.reset_log()
    old = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    outcome, _ = await cache.ask(Listener.MIRROR, "GET", TAG, accept=f"{old}, {ACCEPT}")
    assert isinstance(outcome, Answer)
    assert outcome.result is Result.HIT
    assert hub.count() == 0


async def test_evicted_manifest_is_fetched_again_by_its_tag(cache: Cache, hub: Hub) -> None:
    current = image(hub)
    await result(cache)
    await cache.engine.store.remove(Digest.parse(current.digest))
    assert await result(cache, method="HEAD") is Result.HIT
    status, body = await cache.get(Listener.MIRROR, TAG)
    assert (status, body) == (200, current.manifest)


async def test_fetch_of_a_manifest_continues_when_one_client_disconnects(cache: Cache, hub: Hub) -> None:
    current = image(hub)
    fault = hub.faults.add(Fault(kind="manifest", pause_after=0))
    first = asyncio.create_task(cache.get(Listener.MIRROR, TAG))
    second = asyncio.create_task(cache.get(Listener.MIRROR, TAG))
    await until(lambda: hub.count(kind="manifest", status=200))
    first.cancel()
    hub.faults.remove(fault)
    assert await second == (200, current.manifest)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert hub.count(kind="manifest", status=200) == 1


@pytest.mark.parametrize("asked_first", ["blob", "manifest"])
async def test_missing_blob_does_not_make_a_manifest_with_its_digest_missing(
    cache: Cache, hub: Hub, asked_first: str
) -> None:
    """Otherwise any client could make a manifest unavailable for a while by requesting a blob with its digest."""
    current = image(hub)
    await result(cache)
    if asked_first == "blob":
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{current.digest}"))[0] == 404
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/{current.digest}"))[0] == 200
    else:
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/{current.layers[0]}"))[0] == 404
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{current.layers[0]}"))[0] == 200
