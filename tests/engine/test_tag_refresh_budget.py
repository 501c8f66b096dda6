"""The budget of requests that tag refresh sends to a registry, and the bounds of its state."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.decide.budget import BURST_SECONDS
from hubcache.serve import tag_refresh
from hubcache.serve.messages import Listener, Result
from hubcache.serve.tag_refresh import TICK_SECONDS
from support.engine import Cache
from support.standin import Fault, Hub, Image
from support.tag_refresh import OFTEN_ENOUGH, TTL, ask_tag, idle, popular, running_with_manual_ticks, tick
from support.users import EACH_LISTENER, Clock, until

HOST = "registry-1.docker.io"
DAY = 86400.0


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running_with_manual_ticks(hub, tmp_path / "store") as started:
        yield started


@pytest.fixture
def clock(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, cache)


async def requested_images(cache: Cache, hub: Hub, count: int, times: int = OFTEN_ENOUGH) -> list[Image]:
    images = [hub.image("library/app", str(number), [b"layer"]) for number in range(count)]
    for image in images:
        for _ in range(times):
            await ask_tag(cache, image)
    hub.reset_log()
    return images


async def lifetimes(cache: Cache, clock: Clock, count: float) -> None:
    """Let this time pass, with the ticks of the engine."""
    for _ in range(int(count * TTL / TICK_SECONDS)):
        clock.ahead += TICK_SECONDS
        await tick(cache)


@pytest.mark.parametrize("rate", [0.2, 1.0])
async def test_registry_gets_no_more_requests_than_the_budget(
    cache: Cache, hub: Hub, clock: Clock, rate: float
) -> None:
    cache.apply(sync_rate=rate)
    await requested_images(cache, hub, 100)
    begin = clock.time()
    await lifetimes(cache, clock, 2)
    assert 0 < hub.count() <= rate * (BURST_SECONDS + clock.time() - begin)
    assert hub.count() == hub.count(method="HEAD")


async def test_tags_requested_a_few_times_cost_little(cache: Cache, hub: Hub, clock: Clock) -> None:
    """Even if the budget permits any number of requests, tags that no client requests any more are not validated."""
    cache.apply(sync_rate=1000.0)
    images = await requested_images(cache, hub, 30, times=4)
    await lifetimes(cache, clock, 10)
    assert hub.count() <= 2 * len(images)
    hub.reset_log()
    await lifetimes(cache, clock, 10)
    assert hub.count() == 0


async def test_budget_of_zero_allows_no_validation(cache: Cache, hub: Hub, clock: Clock) -> None:
    cache.apply(sync_rate=0.0)
    await requested_images(cache, hub, 3)
    await lifetimes(cache, clock, 2)
    assert hub.count() == 0


async def test_popular_tags_get_the_budget(cache: Cache, hub: Hub, clock: Clock) -> None:
    cache.apply(sync_rate=0.01)  # one request, and no further one for a long time
    images = await requested_images(cache, hub, 8)
    for _ in range(30):
        await ask_tag(cache, images[5])
    clock.ahead = TTL - 1
    await tick(cache)
    assert [record.path.rpartition("/")[2] for record in hub.requests()] == ["5"]


async def test_unmoved_tag_costs_one_request(cache: Cache, hub: Hub, clock: Clock) -> None:
    await popular(cache, hub.image("library/app", "1"))
    hub.reset_log()
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.count() == hub.count(method="HEAD", kind="manifest") == 1


async def test_prefetched_manifests_count_against_the_budget(cache: Cache, hub: Hub, clock: Clock) -> None:
    """A budget of three requests: the check, the manifest, and the validation that moves the tag."""
    image = hub.image("library/app", "1", [b"one"])
    await popular(cache, image)
    moved = hub.image("library/app", "1", [b"two"])
    cache.apply(sync_rate=3 / BURST_SECONDS)
    clock.ahead = TTL - 1
    await tick(cache)
    assert (await ask_tag(cache, image))[1] == moved.manifest
    assert not cache.engine._tag_refresh._budgets[HOST].spend(clock.time())


async def test_prefetch_waits_for_the_budget(cache: Cache, hub: Hub, clock: Clock) -> None:
    image = hub.image("library/app", "1", [b"one"])
    await popular(cache, image)
    moved = hub.image("library/app", "1", [b"two"])
    hub.reset_log()
    cache.apply(sync_rate=1e-4)
    clock.ahead = TTL - 1
    cache.engine._tag_refresh.tick()
    await until(lambda: cache.engine._tag_refresh._budgets[HOST].wait(clock.time()) > 15000)
    assert hub.count(kind="manifest", method="GET") == 0
    assert (await ask_tag(cache, image))[0].result is Result.HIT, "no client waits meanwhile"
    clock.ahead = TTL * 3
    assert (await ask_tag(cache, image))[1] == moved.manifest, "requests of clients are not part of the budget"


@EACH_LISTENER
async def test_429_to_a_head_pauses_all_validations_at_that_registry(
    cache: Cache, hub: Hub, clock: Clock, listener: Listener
) -> None:
    images = [hub.image("library/app", str(number)) for number in range(6)]
    for image in images:
        await popular(cache, image, listener)
    hub.reset_log()
    limited = hub.faults.add(Fault(kind="manifest", status=429, body="no", headers={"Retry-After": "90"}))
    cache.apply(sync_rate=0.1)
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.count() == 1
    hub.faults.remove(limited)
    cache.engine._tag_refresh.apply(1000.0, cache.engine._upstreams)
    for ahead in (20, 40, 80):
        clock.ahead = TTL - 1 + ahead
        await tick(cache)
    assert hub.count() == 1
    for image in images:
        watched = next(found for found in cache.engine._tag_refresh._watched.values() if found.tag == image.tag)
        watched.count_request(clock.time(), TTL)
    clock.ahead = TTL + 91
    await tick(cache)
    assert hub.count() >= len(images), "and then they go on"


async def test_429_pauses_prefetch(cache: Cache, hub: Hub, clock: Clock) -> None:
    assert cache.engine._reserve.may_spend(HOST)
    await popular(cache, hub.image("library/app", "1"))
    hub.faults.add(Fault(kind="manifest", method="HEAD", status=429, body="no", headers={"Retry-After": "90"}))
    clock.ahead = TTL - 1
    await tick(cache)
    assert not cache.engine._reserve.may_spend(HOST)


async def test_refused_validation_makes_the_repository_unreadable(cache: Cache, hub: Hub, clock: Clock) -> None:
    image = hub.image("alice/app", "1")
    await popular(cache, image)
    hub.private("alice/app", {"alice": "alice's"})
    for value, token in list(hub.accounts.tokens.items()):
        if not token.user:
            del hub.accounts.tokens[value]
    clock.ahead = TTL - 1
    await tick(cache)
    assert (await cache.get(Listener.PROXY, "/v2/alice/app/manifests/1"))[0] == 401
    assert cache.engine.store.tags.get(HOST, "alice/app", "1") == {}


async def test_tag_has_one_validation_at_a_time(cache: Cache, hub: Hub, clock: Clock) -> None:
    """The tag is requested several times during the validation."""
    image = hub.image("library/app", "1")
    await popular(cache, image)
    hub.reset_log()
    held = hub.faults.add(Fault(kind="manifest", blackhole=True))
    clock.ahead = TTL - 1
    cache.engine._tag_refresh.tick()
    await until(lambda: held.hits)
    for _ in range(50):
        await ask_tag(cache, image)
        cache.engine._tag_refresh.tick()
    assert hub.count(kind="manifest", method="HEAD") == 1
    hub.faults.remove(held)
    await idle(cache)


async def test_hour_of_a_tags_moves_survives_a_restart(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = hub.image("library/app", "1", [b"one"])
    async with running_with_manual_ticks(hub, tmp_path / "store") as cache:
        clock = Clock(monkeypatch, cache)
        for day in range(4):
            clock.ahead = day * DAY
            for _ in range(OFTEN_ENOUGH):
                await ask_tag(cache, image)
            hub.image("library/app", "1", [str(day).encode()])
            clock.ahead += TTL + 1
            await ask_tag(cache, image)
            await tick(cache)
        await tick(cache)
        stored = cache.engine.store.tags.changes(HOST, "library/app", "1")
        assert stored is not None
        assert len(stored.times) == 4
    async with running_with_manual_ticks(hub, tmp_path / "store") as cache:
        later = Clock(monkeypatch, cache)
        for hours in range(1, 9):  # not often enough to be validated before it becomes stale
            later.ahead = 3 * DAY + hours * 3600
            await ask_tag(cache, image)
        await tick(cache)
        hub.reset_log()
        later.ahead = 4 * DAY - 1800
        (watched,) = cache.engine._tag_refresh._watched.values()
        watched.record_validation(None, later.time())  # it was validated, and is not due again
        for minute in range(20, 60):
            later.ahead = 4 * DAY + (minute - 40) * 60
            await tick(cache)
        assert hub.count(kind="manifest", method="HEAD") >= 5


async def test_validations_continue_after_the_clock_was_set_back(cache: Cache, hub: Hub, clock: Clock) -> None:
    image = hub.image("library/app", "1")
    clock.ahead = DAY
    await popular(cache, image)
    await tick(cache)
    clock.ahead = 0
    await tick(cache)
    for _ in range(OFTEN_ENOUGH):
        await ask_tag(cache, image)
    hub.reset_log()
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.count(kind="manifest", method="HEAD") == 1


async def test_number_of_watched_tags_is_bounded(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently requested tag is dropped, and no longer validated."""
    monkeypatch.setattr(tag_refresh, "MAX_TAGS", 5)
    async with running_with_manual_ticks(hub, tmp_path / "store") as cache:
        clock = Clock(monkeypatch, cache)
        await requested_images(cache, hub, 12)
        assert len(cache.engine._tag_refresh._watched) == 5
        clock.ahead = TTL - 1
        await tick(cache)
        assert {record.path.rpartition("/")[2] for record in hub.requests()} == {"7", "8", "9", "10", "11"}


async def test_tag_requested_with_a_long_accept_is_not_watched(cache: Cache, hub: Hub) -> None:
    """Clients choose its length: 200,000 headers of 8 KB would take 1.6 GB."""
    image = hub.image("library/app", "1")
    for number in range(3):
        accept = ", ".join([image.media_type, *(f"a/{number}{kind:0>250}" for kind in range(31))])
        assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1", accept=accept))[0] == 200
    assert not cache.engine._tag_refresh._watched
    assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1", accept=image.media_type))[0] == 200
    assert len(cache.engine._tag_refresh._watched) == 1


async def test_many_due_tags_are_validated_in_slices(
    cache: Cache, hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are validated within one tick, with pauses in which requests are answered."""
    monkeypatch.setattr(tag_refresh, "_SLICE", 2)
    cache.apply(sync_rate=1000.0)
    images = await requested_images(cache, hub, 15)
    clock.ahead = TTL - 1
    cache.engine._tag_refresh.tick()
    assert len(cache.engine._tag_refresh._tasks) <= 2
    await until(lambda: hub.count(method="HEAD", status=200) == len(images))
    await idle(cache)


async def test_removed_registry_gets_no_validations(cache: Cache, hub: Hub, clock: Clock) -> None:
    await requested_images(cache, hub, 2)
    cache.engine._tag_refresh.apply(1.0, {})
    await lifetimes(cache, clock, 2)
    assert hub.count() == 0
