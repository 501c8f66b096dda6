"""Manifests over time: how long a tag is fresh, what clocks that jump do, and what must not be remembered."""

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


async def test_tag_is_fresh_for_its_lifetime_and_then_asked_again(cache: Cache, hub: Hub, clock: Clock) -> None:
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


async def test_clock_that_was_set_back_makes_a_tag_stale(cache: Cache, hub: Hub, clock: Clock) -> None:
    """Else it would stay fresh until the clock catches up."""
    image(hub)
    clock.ahead = 86400
    await result(cache)
    clock.ahead = 0
    assert await result(cache) is Result.REVALIDATED
    assert await result(cache) is Result.HIT


async def test_lifetime_that_changes_while_running_counts_for_what_is_known(cache: Cache, hub: Hub) -> None:
    image(hub)
    await result(cache)
    cache.apply(tag_ttl=0.0)
    assert await result(cache) is Result.REVALIDATED
    cache.apply(tag_ttl=60.0)
    assert await result(cache) is Result.HIT


async def test_lifetime_begins_when_the_upstream_was_asked_not_when_it_answered(
    cache: Cache, hub: Hub, clock: Clock
) -> None:
    """It may have moved the tag in between."""
    image(hub)
    fault = hub.faults.add(Fault(kind="manifest", pause_after=0))
    asked = asyncio.create_task(result(cache))
    await until(lambda: hub.count(kind="manifest", status=200))
    clock.ahead = 50
    hub.faults.remove(fault)
    await asked
    clock.ahead = 61
    assert await result(cache) is Result.REVALIDATED


async def test_tag_that_was_pushed_while_it_was_asked_for_is_asked_again(cache: Cache, hub: Hub) -> None:
    image(hub, 1)
    fault = hub.faults.add(Fault(kind="manifest", pause_after=0))
    asked = asyncio.create_task(cache.get(Listener.MIRROR, TAG))
    await until(lambda: hub.count(kind="manifest", status=200))
    moved = image(hub, 2)
    await cache.engine.service.content_changed(cache.settings.registries[0], Change(REPO, "1"))
    hub.faults.remove(fault)
    await asked
    assert (await cache.get(Listener.MIRROR, TAG))[1] == moved.manifest


async def test_question_that_differs_only_in_older_types_shares_the_answer(cache: Cache, hub: Hub) -> None:
    """dockerd and containerd list the same four types beside others."""
    image(hub)
    await result(cache)
    hub.reset_log()
    old = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    outcome, _ = await cache.ask(Listener.MIRROR, "GET", TAG, accept=f"{old}, {ACCEPT}")
    assert isinstance(outcome, Answer)
    assert outcome.result is Result.HIT
    assert hub.count() == 0


async def test_manifest_that_was_evicted_is_fetched_again_by_its_tag(cache: Cache, hub: Hub) -> None:
    current = image(hub)
    await result(cache)
    await cache.engine.store.remove(Digest.parse(current.digest))
    assert await result(cache, method="HEAD") is Result.HIT
    status, body = await cache.get(Listener.MIRROR, TAG)
    assert (status, body) == (200, current.manifest)


async def test_client_that_leaves_while_a_manifest_is_fetched_leaves_it_to_others(cache: Cache, hub: Hub) -> None:
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
async def test_digest_that_is_absent_as_one_kind_is_not_absent_as_the_other(
    cache: Cache, hub: Hub, asked_first: str
) -> None:
    """Else anybody could make a manifest vanish for a while by asking for a blob of its digest."""
    current = image(hub)
    await result(cache)
    if asked_first == "blob":
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{current.digest}"))[0] == 404
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/{current.digest}"))[0] == 200
    else:
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/{current.layers[0]}"))[0] == 404
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{current.layers[0]}"))[0] == 200
