"""Docker Engine 29 pulls an attested image: once it is stored nobody is asked, and an outage is none."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.serve.messages import Answer, Door
from support import engine29
from support.engine import Cache, read, running
from support.engine29 import ACTIONS, attested
from support.standin import Fault, Hub, Image
from support.users import DOORS, Clock, settled, short_times

TTL, MAX_STALE = 600.0, 10_000.0


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    short_times(monkeypatch)


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store", tag_ttl=TTL, max_stale=MAX_STALE) as started:
        yield started


async def replay(cache: Cache, index: Image, action: str, door: Door) -> None:
    """The engine's requests in order; each is answered here as the engine needs it."""
    for one in engine29.asked(action, index):
        path = one.path if door is Door.MIRROR else one.at_registry
        headers = {name.replace("-", "_"): value for name, value in one.headers.items()}
        answer = await cache.engine.answer(cache.request(door, one.method, path, **headers))
        assert isinstance(answer, Answer), one
        await read(answer)
        assert answer.status == one.expected, one
    await settled(cache)


@DOORS
@pytest.mark.parametrize("action", ACTIONS)
async def test_warm_pull_asks_nobody(cache: Cache, hub: Hub, door: Door, action: str) -> None:
    index = attested(hub)
    await replay(cache, index, "pull", door)
    hub.reset_log()
    await replay(cache, index, action, door)
    assert hub.count() == 0


@DOORS
@pytest.mark.parametrize("action", ACTIONS)
async def test_pull_through_one_door_serves_the_other(cache: Cache, hub: Hub, door: Door, action: str) -> None:
    index = attested(hub)
    await replay(cache, index, "pull", Door.MIRROR if door is Door.PROXY else Door.PROXY)
    hub.reset_log()
    await replay(cache, index, action, door)
    assert hub.count() == 0


@DOORS
@pytest.mark.parametrize("age", [0.0, TTL + 1, MAX_STALE / 2])
async def test_pull_succeeds_while_the_registry_is_dead(
    cache: Cache, hub: Hub, door: Door, age: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, clock = attested(hub), Clock(monkeypatch, cache)
    await replay(cache, index, "pull", door)
    hub.stop()
    clock.ahead = age
    for action in ACTIONS:
        await replay(cache, index, action, door)


@DOORS
@pytest.mark.parametrize("trouble", ["offline", "dead", "503", "429"])
async def test_image_that_no_engine_of_today_pulled_before_is_pulled_in_an_outage(
    cache: Cache, hub: Hub, door: Door, trouble: str
) -> None:
    """What was never asked about its attestations is answered 404, which ends no pull."""
    index = attested(hub)
    for one in engine29.asked("pull", index):
        if one.expected == 200:
            await cache.ask(door, one.method, one.at_registry, accept=one.headers["accept"])
    await settled(cache)
    match trouble:
        case "offline":
            cache.apply(offline=True)
        case "dead":
            hub.stop()
        case status:
            hub.faults.add(Fault(status=int(status)))
    for action in ACTIONS:
        await replay(cache, index, action, door)


@DOORS
async def test_pull_after_a_restart_in_an_outage(hub: Hub, tmp_path: Path, door: Door) -> None:
    index = attested(hub)
    async with running(hub, tmp_path / "store", tag_ttl=TTL) as cache:
        await replay(cache, index, "pull", door)
    hub.reset_log()
    async with running(hub, tmp_path / "store", tag_ttl=TTL) as cache:
        await replay(cache, index, "pull", door)
        assert hub.count() == 0
        hub.stop()
        await replay(cache, index, "pull", door)
