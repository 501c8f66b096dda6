"""Docker Engine 29 pulls an attested image: once it is stored, no request is sent upstream, also in an outage."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.serve.messages import Answer, Listener
from support import engine29
from support.engine import Cache, read, running
from support.engine29 import ACTIONS, attested
from support.standin import Fault, Hub, Image
from support.users import EACH_LISTENER, Clock, settled

TTL, MAX_STALE = 600.0, 10_000.0


pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store", tag_ttl=TTL, max_stale=MAX_STALE) as started:
        yield started


async def replay(cache: Cache, index: Image, action: str, listener: Listener) -> None:
    """Send the engine's requests in order, and assert that each is answered as the engine needs."""
    for one in engine29.recorded_requests(action, index):
        path = one.path if listener is Listener.MIRROR else one.at_registry
        headers = {name.replace("-", "_"): value for name, value in one.headers.items()}
        answer = await cache.engine.answer(cache.request(listener, one.method, path, **headers))
        assert isinstance(answer, Answer), one
        await read(answer)
        assert answer.status == one.expected, one
    await settled(cache)


@EACH_LISTENER
@pytest.mark.parametrize("action", ACTIONS)
async def test_pull_of_a_stored_image_sends_no_request(cache: Cache, hub: Hub, listener: Listener, action: str) -> None:
    index = attested(hub)
    await replay(cache, index, "pull", listener)
    hub.reset_log()
    await replay(cache, index, action, listener)
    assert hub.count() == 0


@EACH_LISTENER
@pytest.mark.parametrize("action", ACTIONS)
async def test_pull_at_one_listener_serves_the_other(cache: Cache, hub: Hub, listener: Listener, action: str) -> None:
    index = attested(hub)
    await replay(cache, index, "pull", Listener.MIRROR if listener is Listener.PROXY else Listener.PROXY)
    hub.reset_log()
    await replay(cache, index, action, listener)
    assert hub.count() == 0


@EACH_LISTENER
@pytest.mark.parametrize("age", [0.0, TTL + 1, MAX_STALE / 2])
async def test_pull_succeeds_while_the_registry_is_down(
    cache: Cache, hub: Hub, listener: Listener, age: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, clock = attested(hub), Clock(monkeypatch, cache)
    await replay(cache, index, "pull", listener)
    hub.stop()
    clock.ahead = age
    for action in ACTIONS:
        await replay(cache, index, action, listener)


@EACH_LISTENER
@pytest.mark.parametrize("trouble", ["offline", "dead", "503", "429"])
async def test_image_whose_referrers_were_never_requested_is_pulled_in_an_outage(
    cache: Cache, hub: Hub, listener: Listener, trouble: str
) -> None:
    """Referrers that were never requested are answered with 404, with which the pull continues."""
    index = attested(hub)
    for one in engine29.recorded_requests("pull", index):
        if one.expected == 200:
            await cache.ask(listener, one.method, one.at_registry, accept=one.headers["accept"])
    await settled(cache)
    match trouble:
        case "offline":
            cache.apply(offline=True)
        case "dead":
            hub.stop()
        case status:
            hub.faults.add(Fault(status=int(status)))
    for action in ACTIONS:
        await replay(cache, index, action, listener)


@EACH_LISTENER
async def test_pull_after_a_restart_in_an_outage(hub: Hub, tmp_path: Path, listener: Listener) -> None:
    index = attested(hub)
    async with running(hub, tmp_path / "store", tag_ttl=TTL) as cache:
        await replay(cache, index, "pull", listener)
    hub.reset_log()
    async with running(hub, tmp_path / "store", tag_ttl=TTL) as cache:
        await replay(cache, index, "pull", listener)
        assert hub.count() == 0
        hub.stop()
        await replay(cache, index, "pull", listener)
