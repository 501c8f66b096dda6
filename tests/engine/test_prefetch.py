"""The new content of a popular tag is prefetched, within the cap and without the reserve of the rate limit."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.account import Account
from hubcache.serve import tag_refresh
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.serve.tag_refresh import TICK_SECONDS
from support.engine import Cache, running
from support.standin import Fault, Hub, Image, random_bytes
from support.tag_refresh import OFTEN_ENOUGH, TTL, ask_tag, idle, popular, running_with_manual_ticks, tick
from support.users import EACH_LISTENER, Clock, requests_of, settled, turn_private, until


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running_with_manual_ticks(hub, tmp_path / "store") as started:
        yield started


@pytest.fixture
def clock(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, cache)


def release(hub: Hub, version: int) -> tuple[Image, dict[str, Image]]:
    """Push a new image index to the same tag; each platform has one layer that no other has, and one that all share."""
    base = random_bytes(20_000, "base")
    images = {
        platform: hub.image("library/app", None, [base, f"{platform} {version}".encode()], platform=platform)
        for platform in ("linux/amd64", "linux/arm64", "linux/s390x")
    }
    return hub.index("library/app", "1", images), images


async def pull_platform(cache: Cache, image: Image, listener: Listener = Listener.PROXY) -> None:
    """Pull the manifest of one platform, its config and its layers, as Docker does."""
    for method, path in requests_of(image):
        answer, _ = await cache.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert answer.status == 200
    await settled(cache)


async def changed_tag(cache: Cache, hub: Hub, clock: Clock) -> tuple[Image, dict[str, Image]]:
    """Change a popular tag that clients on amd64 and arm64 pull, and advance the clock to its validation."""
    index, images = release(hub, 1)
    for _ in range(OFTEN_ENOUGH):
        await ask_tag(cache, index)
    for platform in ("linux/amd64", "linux/arm64"):
        await pull_platform(cache, images[platform])
    found = release(hub, 2)
    clock.ahead = TTL - 1
    hub.reset_log()
    return found


@EACH_LISTENER
async def test_changed_popular_tag_is_pulled_without_upstream_requests(
    cache: Cache, hub: Hub, clock: Clock, listener: Listener
) -> None:
    """Manifests and layers of the platforms that clients pull are stored before a client asks."""
    index, images = await changed_tag(cache, hub, clock)
    await tick(cache)
    hub.reset_log()
    clock.ahead = TTL * 1.5
    answer, body = await ask_tag(cache, index, listener)
    assert (answer.result, body) == (Result.HIT, index.manifest)
    for platform in ("linux/amd64", "linux/arm64"):
        await pull_platform(cache, images[platform], listener)
    assert hub.count() == 0


async def test_only_platforms_that_clients_pull_are_prefetched(cache: Cache, hub: Hub, clock: Clock) -> None:
    _, images = await changed_tag(cache, hub, clock)
    await tick(cache)
    unwanted = images["linux/s390x"]
    assert hub.count(kind="manifest", path=f"*{unwanted.digest}") == 0
    assert hub.count(path=f"*{unwanted.layers[1]}*") == 0
    fetched = {record.path.rpartition("/")[2].partition("?")[0] for record in hub.requests(kind="cdn", method="GET")}
    wanted = [images["linux/amd64"], images["linux/arm64"]]
    assert fetched == {blob for image in wanted for blob in (image.config, image.layers[1])}, (
        "the base layer is stored already"
    )


@EACH_LISTENER
async def test_tag_keeps_its_digest_until_all_content_is_prefetched(
    cache: Cache, hub: Hub, clock: Clock, listener: Listener
) -> None:
    """No client waits for the prefetch, even when it takes longer than the tag's lifetime."""
    before, _ = release(hub, 1)
    index, _ = await changed_tag(cache, hub, clock)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=3))
    cache.engine._manifests.tag_lifetime = TTL
    cache.engine._tag_refresh.tick()
    await until(lambda: fault.hits)
    for _ in range(3):
        clock.ahead += 1.0
        answer, body = await ask_tag(cache, index, listener)
        assert (answer.result, body) == (Result.HIT, before.manifest)
    hub.faults.remove(fault)
    await idle(cache)
    assert (await ask_tag(cache, index, listener))[1] == index.manifest


async def test_repository_that_turns_private_during_a_prefetch_is_not_served(
    cache: Cache, hub: Hub, clock: Clock
) -> None:
    """That the registry began to send a layer does not prove that the repository is public when the transfer ends."""
    index, images = await changed_tag(cache, hub, clock)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=3, times=1))
    cache.engine._tag_refresh.tick()
    await until(lambda: fault.hits)
    turn_private(hub, "library/app")
    assert (await cache.get(Listener.MIRROR, "/v2/library/app/manifests/other"))[0] == 404
    assert not cache.engine._access.can_read_repository("registry-1.docker.io", "library/app", None)
    hub.faults.remove(fault)
    await idle(cache)
    assert not cache.engine._access.can_read_repository("registry-1.docker.io", "library/app", None)
    hub.stop()
    for image in (index, *images.values()):
        assert (await cache.get(Listener.MIRROR, f"/v2/library/app/manifests/{image.digest}"))[0] != 200


async def test_tag_stays_fresh_during_a_prefetch_longer_than_its_lifetime(cache: Cache, hub: Hub, clock: Clock) -> None:
    """Once the prefetch runs, this test uses the real clock, and a lifetime of two seconds."""
    cache.apply(tag_ttl=2.0)
    image = hub.image("library/app", "1", [b"one"])
    await popular(cache, image)
    hub.image("library/app", "1", [b"two"])
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1))
    clock.ahead = 1.8
    cache.engine._tag_refresh.tick()
    await until(lambda: fault.hits)
    for _ in range(10):
        await asyncio.sleep(0.25)
        answer, body = await ask_tag(cache, image)
        assert (answer.result, body) == (Result.HIT, image.manifest)
    hub.faults.remove(fault)
    await idle(cache)


async def test_tag_without_pulls_is_not_prefetched(cache: Cache, hub: Hub, clock: Clock) -> None:
    """Clients check the tag for updates and pull nothing."""
    image = hub.image("library/app", "1", [b"one"])
    for _ in range(OFTEN_ENOUGH):
        await ask_tag(cache, image)
    hub.image("library/app", "1", [b"two"])
    hub.reset_log()
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.count(kind="cdn") == hub.count(kind="blob") == 0


async def test_unpopular_tag_is_not_prefetched(cache: Cache, hub: Hub, clock: Clock) -> None:
    image = hub.image("library/app", "1", [b"one"])
    for path in (image.config, *image.layers):
        assert (await cache.get(Listener.PROXY, f"/v2/library/app/blobs/{path}"))[0] == 200
    await ask_tag(cache, image)
    hub.image("library/app", "1", [b"two"])
    hub.reset_log()
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.count() == 0


@pytest.mark.parametrize("remaining", [10, 11], ids=["at the reserve", "above it"])
async def test_prefetch_does_not_use_the_reserve_of_the_rate_limit(
    cache: Cache, hub: Hub, clock: Clock, remaining: int
) -> None:
    """`hubcache_ratelimit_reserve` is 10 here; a prefetch needs more than that."""
    image = hub.image("library/app", "1", [b"one"])
    await popular(cache, image)
    hub.limit(remaining)
    changed = hub.image("library/app", "1", [b"two"])
    clock.ahead = TTL - 1
    await tick(cache)
    await tick(cache)
    assert hub.remaining == 10
    clock.ahead = TTL * 1.2
    assert (await ask_tag(cache, image))[1] == changed.manifest, "a client's miss may use the reserve"
    assert hub.remaining == (9 if remaining == 10 else 10)


async def test_prefetch_of_an_image_index_stops_at_the_reserve(cache: Cache, hub: Hub, clock: Clock) -> None:
    """Each of its manifests counts as a pull."""
    await changed_tag(cache, hub, clock)
    hub.limit(12)
    for _ in range(3):
        await tick(cache)
    assert hub.remaining == 10


async def test_background_validation_below_the_reserve_makes_no_counted_request(
    cache: Cache, hub: Hub, clock: Clock
) -> None:
    """This includes tags for which clients sent only HEAD requests, so that the manifest is not stored."""
    hub.limit(5)
    hub.image("library/app", "1")
    for _ in range(OFTEN_ENOUGH):
        answer, _ = await cache.ask(Listener.PROXY, "HEAD", "/v2/library/app/manifests/1")
        assert isinstance(answer, Answer)
        assert answer.status == 200
    assert hub.remaining == 5
    clock.ahead = TTL - 1
    await tick(cache)
    assert hub.remaining == 5


async def test_reserve_applies_to_the_limit_of_the_account(hub: Hub, tmp_path: Path) -> None:
    """The answer to an anonymous HEAD request contains the anonymous limit, not that of the account."""
    hub.user("robot", "robot's")
    hub.limit(50)
    async with running(hub, tmp_path / "account", account=Account("robot", "robot's")) as cache:
        await popular(cache, hub.image("library/app", "1", [b"one"]))
        cache.engine.metrics.rate_limit_seen("registry-1.docker.io", "anonymous", 100, 0)
        assert cache.engine._reserve.may_spend("registry-1.docker.io")
        cache.engine.metrics.rate_limit_seen("registry-1.docker.io", "account", 100, 3)
        assert not cache.engine._reserve.may_spend("registry-1.docker.io")


async def test_prefetch_stays_within_the_cap(cache: Cache, hub: Hub, clock: Clock) -> None:
    """An image that cannot fit is not prefetched again and again, and is served to clients nevertheless."""
    cache.apply(size=3 << 20)
    image = hub.image("library/app", "1", [b"one"])
    await popular(cache, image)
    new = hub.image("library/app", "1", [random_bytes(4 << 20)])
    clock.ahead = TTL - 1
    highest = 0
    cache.engine._tag_refresh.tick()
    while cache.engine._tag_refresh._tasks:
        highest = max(highest, cache.engine.store.usage.used)
        await asyncio.sleep(0.002)
    assert 0 < highest <= 3 << 20
    clock.ahead = TTL * 3
    assert (await ask_tag(cache, image))[1] == new.manifest
    status, body = await cache.get(Listener.PROXY, f"/v2/library/app/blobs/{new.layers[0]}")
    assert (status, body) == (200, random_bytes(4 << 20))


async def test_old_image_is_served_after_a_failed_prefetch(
    cache: Cache, hub: Hub, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    image = hub.image("library/app", "1", [b"one"])
    await popular(cache, image)
    new = hub.image("library/app", "1", [b"two"])
    hub.faults.add(Fault(kind="blob", status=404, body="no", path=f"*{new.layers[0]}"))
    clock.ahead = TTL - 1
    with caplog.at_level("INFO", "hubcache"):
        await tick(cache)
    assert "library/app:1 cannot be refreshed" in caplog.text
    assert (await ask_tag(cache, image))[0].status == 200


@pytest.mark.parametrize("obstacle", ["too big", "layer is missing"])
async def test_changed_tag_is_served_when_its_content_cannot_be_prefetched(
    cache: Cache, hub: Hub, clock: Clock, obstacle: str
) -> None:
    """A client gets the new content, at the latest after two lifetimes of the tag."""
    image = hub.image("library/app", "1", [b"one"])
    await popular(cache, image)
    if obstacle == "too big":
        cache.apply(size=3 << 20)
    new = hub.image("library/app", "1", [random_bytes(4 << 20)])
    if obstacle == "layer is missing":
        hub.faults.add(Fault(kind="blob", status=404, body="no", path=f"*{new.layers[0]}"))
    for _ in range(int(5 * TTL / TICK_SECONDS)):
        clock.ahead += TICK_SECONDS
        await tick(cache)
    assert (await ask_tag(cache, image))[1] == new.manifest


async def test_changed_tag_is_served_when_a_prefetch_takes_too_long(
    cache: Cache, hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_refresh, "_LONGEST_FETCH_SECONDS", 0.5)
    image = hub.image("library/app", "1", [b"one"])
    await popular(cache, image)
    new = hub.image("library/app", "1", [random_bytes(4 << 20)])
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1))
    for _ in range(int(5 * TTL / TICK_SECONDS)):
        clock.ahead += TICK_SECONDS
        cache.engine._tag_refresh.tick()
        await until(lambda: not cache.engine._tag_refresh._tasks)
    assert (await ask_tag(cache, image))[1] == new.manifest
    hub.faults.remove(fault)
    await idle(cache)
