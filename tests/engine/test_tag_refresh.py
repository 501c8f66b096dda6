"""Tags that are requested often are validated before they become stale, so that no client waits for the Hub."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.serve.messages import Listener, Result
from hubcache.serve.tag_refresh import TICK_SECONDS
from support.engine import Cache
from support.standin import Hub
from support.tag_refresh import OFTEN_ENOUGH, TTL, ask_tag, idle, popular, running_with_manual_ticks, tick
from support.users import EACH_LISTENER, Clock


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running_with_manual_ticks(hub, tmp_path / "store") as started:
        yield started


@pytest.fixture
def clock(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, cache)


@EACH_LISTENER
async def test_popular_tag_is_validated_before_it_becomes_stale(
    cache: Cache, hub: Hub, clock: Clock, listener: Listener
) -> None:
    """The validation does not count as a pull, and after the first lifetime a client is answered without a request
    upstream."""
    hub.limit(50)
    image = hub.image("library/app", "1")
    await popular(cache, image, listener)
    hub.reset_log()
    clock.ahead = TTL - 1
    await tick(cache)
    assert {record.method for record in hub.requests(kind="manifest")} == {"HEAD"}
    assert hub.remaining == 49
    hub.reset_log()
    clock.ahead = TTL * 1.5
    answer, body = await ask_tag(cache, image, listener)
    assert (answer.result, body) == (Result.HIT, image.manifest)
    assert hub.count() == 0


async def test_tag_far_from_stale_is_not_validated(cache: Cache, hub: Hub, clock: Clock) -> None:
    await popular(cache, hub.image("library/app", "1"))
    hub.reset_log()
    for ahead in (0, TTL / 4, TTL / 2, TTL * 0.75):
        clock.ahead = ahead
        await tick(cache)
    assert hub.count() == 0


async def test_tag_requested_seldom_is_not_validated(cache: Cache, hub: Hub, clock: Clock) -> None:
    image = hub.image("library/app", "1")
    assert (await ask_tag(cache, image))[0].status == 200
    hub.reset_log()
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.count() == 0


async def test_tag_no_longer_requested_is_not_validated(cache: Cache, hub: Hub, clock: Clock) -> None:
    await popular(cache, hub.image("library/app", "1"))
    clock.ahead = 86400
    hub.reset_log()
    await tick(cache)
    assert hub.count() == 0


async def test_tag_of_a_private_repository_is_not_validated(cache: Cache, hub: Hub, clock: Clock) -> None:
    hub.image("alice/secret", "1")
    hub.private("alice/secret", {"alice": "alice's"})
    for _ in range(OFTEN_ENOUGH):
        assert (await cache.get(Listener.PROXY, "/v2/alice/secret/manifests/1"))[0] == 401
    hub.reset_log()
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.count() == 0


async def test_validations_are_spread_over_time(cache: Cache, hub: Hub, clock: Clock) -> None:
    """Tags that were requested at the same time are validated at different times."""
    for number in range(12):
        image = hub.image("library/app", str(number), [b"layer"])
        for _ in range(OFTEN_ENOUGH):
            await ask_tag(cache, image)
    hub.reset_log()
    times: set[int] = set()
    for second in range(int(TTL * 0.7), int(TTL)):
        clock.ahead = second
        before = hub.count(kind="manifest")
        cache.engine._tag_refresh.tick()
        await idle(cache)
        if hub.count(kind="manifest") > before:
            times.add(second)
    assert len(times) >= 4


async def test_popular_tag_is_never_stale_whenever_ticks_occur(cache: Cache, hub: Hub, clock: Clock) -> None:
    """This test uses the engine's interval between ticks, the default lifetime, and clients that request the tag."""
    images = [hub.image("library/app", str(number), [b"layer"]) for number in range(20)]
    for image in images:
        for _ in range(OFTEN_ENOUGH):
            await ask_tag(cache, image)
    hub.reset_log()
    stale = set()
    for _ in range(int(2 * TTL / TICK_SECONDS)):
        clock.ahead += TICK_SECONDS * 0.99
        now = clock.time()
        for watched in cache.engine._tag_refresh._watched.values():
            watched.count_request(now, TTL)
        for image in images:
            for record in cache.engine.store.tags.get("registry-1.docker.io", image.repo, image.tag or "").values():
                if now - record.validated_at >= TTL:
                    stale.add(image.tag)
        await tick(cache)
    assert stale == set()


@EACH_LISTENER
async def test_stale_popular_tag_is_not_requested_repeatedly_in_an_outage(
    cache: Cache, hub: Hub, clock: Clock, listener: Listener
) -> None:
    image = hub.image("library/app", "1")
    await popular(cache, image, listener)
    hub.stop()
    clock.ahead = TTL * 2
    for _ in range(3):
        await tick(cache)
    answer, body = await ask_tag(cache, image, listener)
    assert (answer.result, body) == (Result.STALE, image.manifest)
    assert cache.engine.metrics.render().decode().count('kind="manifest",status="error"} 3.0') == 1


@pytest.mark.parametrize("off", [{"sync": False}, {"offline": True}, {"tag_ttl": 0.0}], ids=lambda off: next(iter(off)))
async def test_tag_refresh_can_be_switched_off(cache: Cache, hub: Hub, clock: Clock, off: dict[str, float]) -> None:
    await popular(cache, hub.image("library/app", "1"))
    hub.reset_log()
    cache.apply(**off)
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.count() == 0
