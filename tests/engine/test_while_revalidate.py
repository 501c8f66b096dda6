"""`hubcache_stale_while_revalidate` (RFC 5861 section 3): a stale tag is served at once while it is validated."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.serve import cached_manifests
from hubcache.serve.messages import Answer, Listener, Result
from support.engine import Cache, running
from support.standin import Fault, Hub, Image
from support.users import EACH_LISTENER, SECRET, Clock, bearer, pull, turn_private, until

TTL, WINDOW = 60.0, 30.0
TAG = "/v2/library/app/manifests/1"


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store", tag_ttl=TTL, while_revalidate=WINDOW, authorize=True) as started:
        yield started


@pytest.fixture
def clock(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, cache)


@pytest.fixture
async def image(cache: Cache, hub: Hub, clock: Clock) -> Image:
    """A stored image whose tag became stale ten seconds ago."""
    found = hub.image("library/app", "1", [b"one"])
    await pull(cache, found)
    hub.reset_log()
    clock.ahead = TTL + 10
    return found


async def ask(
    cache: Cache, listener: Listener = Listener.PROXY, method: str = "GET", path: str = TAG
) -> tuple[Answer, bytes]:
    answer, body = await cache.ask(listener, method, path)
    assert isinstance(answer, Answer)
    return answer, body


async def revalidated(cache: Cache) -> None:
    await until(lambda: not cache.engine._manifests._revalidations)


@EACH_LISTENER
async def test_stale_tag_is_served_at_once_while_it_is_validated(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    held = hub.faults.add(Fault(kind="manifest", blackhole=True))
    answer, body = await ask(cache, listener)
    assert (answer.status, answer.result, body) == (200, Result.STALE, image.manifest)
    status = answer.headers["Cache-Status"]
    assert status in {f'hubcache; hit; ttl=-{over}; detail="revalidating"' for over in (10, 11)}
    await until(lambda: held.hits)
    hub.faults.remove(held)
    await revalidated(cache)


async def test_next_answer_is_the_validated_one(cache: Cache, hub: Hub, image: Image) -> None:
    moved = hub.image("library/app", "1", [b"two"])
    assert (await ask(cache))[1] == image.manifest
    await revalidated(cache)
    hub.reset_log()
    answer, body = await ask(cache)
    assert (answer.result, body) == (Result.HIT, moved.manifest)
    assert hub.count() == 0


async def test_head_of_a_stale_tag_is_answered_at_once(cache: Cache, hub: Hub, image: Image) -> None:
    answer, _ = await ask(cache, method="HEAD")
    assert (answer.result, answer.length) == (Result.STALE, len(image.manifest))
    await revalidated(cache)
    assert hub.count(kind="manifest", method="HEAD") == 1


async def test_many_clients_cause_one_validation(cache: Cache, hub: Hub, image: Image) -> None:
    held = hub.faults.add(Fault(kind="manifest", blackhole=True))
    answers = await asyncio.gather(*(ask(cache, method=method) for method in ("GET", "HEAD") * 10))
    assert {answer.result for answer, _ in answers} == {Result.STALE}
    await until(lambda: held.hits)
    assert hub.count(kind="manifest") == 1
    hub.faults.remove(held)
    await revalidated(cache)


async def test_client_waits_after_the_window(cache: Cache, hub: Hub, image: Image, clock: Clock) -> None:
    clock.ahead = TTL + WINDOW + 1
    assert (await ask(cache))[0].result is Result.REVALIDATED


async def test_client_waits_when_the_option_is_off(cache: Cache, hub: Hub, image: Image) -> None:
    cache.apply(while_revalidate=0.0)
    assert (await ask(cache))[0].result is Result.REVALIDATED


async def test_tag_validated_in_the_future_is_not_served_while_revalidating(
    cache: Cache, hub: Hub, image: Image, clock: Clock
) -> None:
    """The clock was set back, so that the age is not known."""
    clock.ahead = -TTL
    assert (await ask(cache))[0].result is not Result.STALE


async def test_client_waits_for_a_manifest_that_is_not_stored(cache: Cache, hub: Hub, clock: Clock) -> None:
    image = hub.image("library/app", "1", [b"one"])
    await ask(cache, method="HEAD")
    clock.ahead = TTL + 10
    answer, body = await ask(cache)
    assert answer.result is not Result.STALE
    assert body == image.manifest


async def test_missing_tag_is_not_served_after_the_validation(cache: Cache, hub: Hub, image: Image) -> None:
    hub.faults.add(Fault(kind="manifest", status=404, body={"errors": [{"code": "MANIFEST_UNKNOWN"}]}))
    assert (await ask(cache))[0].status == 200
    await revalidated(cache)
    hub.reset_log()
    assert (await ask(cache))[0].status == 404
    assert hub.count() == 0, "remembered as any other error"


async def test_tag_is_not_served_after_the_validation_was_refused(cache: Cache, hub: Hub, image: Image) -> None:
    turn_private(hub, "library/app")
    assert (await ask(cache))[0].status == 200
    await revalidated(cache)
    for path in (TAG, f"/v2/library/app/manifests/{image.digest}", f"/v2/library/app/blobs/{image.layers[0]}"):
        assert (await ask(cache, path=path))[0].status == 401


async def test_tag_is_served_while_the_registry_is_down(cache: Cache, hub: Hub, image: Image, clock: Clock) -> None:
    """It is served until the window ends; then `hubcache_max_stale` applies, as in any outage."""
    hub.stop()
    for ahead in (TTL + 10, TTL + 20, TTL + WINDOW + 1):
        clock.ahead = ahead
        answer, body = await ask(cache)
        assert (answer.result, body) == (Result.STALE, image.manifest)
        await revalidated(cache)
    assert "revalidating" not in answer.headers["Cache-Status"]


async def test_client_with_credentials_waits_for_the_validation(
    cache: Cache, hub: Hub, secret: Image, clock: Clock
) -> None:
    """Only the registry can tell whether the client may still read it."""
    path = f"/v2/{SECRET}/manifests/1"
    alice = bearer(hub, "alice", SECRET)
    cache.apply(tag_ttl=20.0, negative_ttl=1000.0)
    await pull(cache, secret, authorization=alice)
    clock.ahead = 30
    answer, body = await cache.ask(Listener.PROXY, "GET", path, authorization=alice)
    assert isinstance(answer, Answer)
    assert (answer.result, body) == (Result.REVALIDATED, secret.manifest)
    assert (await ask(cache, path=path))[0].status == 401


async def test_number_of_background_validations_is_bounded(
    cache: Cache, hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound a client waits for its own validation."""
    monkeypatch.setattr(cached_manifests, "MAX_REVALIDATIONS", 0)
    assert (await ask(cache))[0].result is Result.REVALIDATED
