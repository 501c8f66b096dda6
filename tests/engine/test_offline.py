"""No upstream, by option or by outage: stored content is served for as long as the options say."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.decide.policy import VISIBILITY_LIFETIME
from hubcache.serve.messages import Answer, Forward, Listener, Result
from support.engine import Cache, running
from support.standin import Hub, Image
from support.users import EACH_LISTENER, Clock, basic, bearer, pull, requests_of

MAX_STALE, TTL = 10_000.0, 600.0


pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image("library/app", "1")


@pytest.fixture
async def cache(hub: Hub, image: Image, tmp_path: Path) -> AsyncIterator[Cache]:
    """A cache with the image in its store."""
    async with running(hub, tmp_path / "store", tag_ttl=TTL, max_stale=MAX_STALE) as started:
        assert set(await pull(started, image)) == {200}
        hub.reset_log()
        yield started


# -- hubcache_offline ------------------------------------------------------------------------------------------------


@EACH_LISTENER
async def test_offline_serves_stored_content_of_any_age_without_requests(
    cache: Cache, hub: Hub, image: Image, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    cache.apply(offline=True, max_stale=float("inf"))
    for years in (0, 1, 20):
        clock.ahead = years * 365 * 86400.0
        assert set(await pull(cache, image, listener)) == {200}
    answer, _ = await cache.ask(listener, "GET", "/v2/library/app/manifests/1")
    assert isinstance(answer, Answer)
    assert answer.result is Result.STALE
    assert 'detail="offline' in answer.headers["Cache-Status"]
    assert hub.count() == 0


@EACH_LISTENER
async def test_offline_answers_other_requests_at_once_without_requests(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    hub.image("library/other", "1", [b"another"])
    hub.private("alice/secret", {"alice": "alice's"})
    cache.apply(offline=True)
    own = bearer(hub, "alice", "alice/secret")
    async with asyncio.timeout(30):
        for method, path in (
            ("GET", "/v2/library/other/manifests/1"),
            ("GET", f"/v2/library/other/blobs/{image.layers[0]}"),
            ("GET", "/v2/alice/secret/manifests/1"),
            ("GET", "/v2/library/app/tags/list"),
            ("PUT", "/v2/alice/secret/manifests/1"),
            ("POST", "/v2/alice/secret/blobs/uploads/"),
        ):
            for headers in ({}, {"authorization": own}):
                outcome, body = await cache.ask(listener, method, path, **headers)
                assert not isinstance(outcome, Forward), path
                assert outcome.status == 503, path
                assert b"UNAVAILABLE" in body
        assert (await cache.get(listener, "/v2/"))[0] == (401 if listener is Listener.PROXY else 200)
    assert hub.count() == 0


async def test_offline_issues_tokens_for_pulls_but_not_for_login(cache: Cache, hub: Hub) -> None:
    cache.apply(offline=True)
    own = basic("alice", "alice's")
    for query, status in (("&scope=repository:library/app:pull", 200), ("", 503)):
        request = cache.request(Listener.PROXY, "GET", f"/token?service=registry.docker.io{query}", authorization=own)
        assert (await cache.engine.token_service.answer(request)).status == status
    assert hub.count() == 0


@EACH_LISTENER
async def test_offline_from_the_start_needs_only_the_store(
    hub: Hub, image: Image, listener: Listener, tmp_path: Path
) -> None:
    async with running(hub, tmp_path / "store", tag_ttl=TTL) as before:
        await pull(before, image)
    hub.reset_log()
    async with running(hub, tmp_path / "store", tag_ttl=0.0, offline=True, max_stale=float("inf")) as after:
        assert set(await pull(after, image, listener)) == {200}
        assert after.engine.service is not None
    assert hub.count() == 0


async def test_going_offline_ends_probes_of_an_open_circuit(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The circuit opened earlier; an offline cache sends no requests, not even probes."""
    monkeypatch.setattr("hubcache.transfer.breaker._FIRST_PROBE_SECONDS", 0.05)
    monkeypatch.setattr("hubcache.transfer.breaker._LAST_PROBE_SECONDS", 0.05)
    hub.stop()
    await cache.get(Listener.PROXY, "/v2/library/app/manifests/none")
    assert cache.engine.breakers.open_reason(f"localhost:{hub.ports['registry']}") is not None
    cache.apply(offline=True)
    hub.start()
    await asyncio.sleep(0.3)
    assert hub.count() == 0


async def test_upstream_is_asked_after_going_online_again(cache: Cache, hub: Hub) -> None:
    cache.apply(offline=True)
    assert (await cache.get(Listener.PROXY, "/v2/library/new/manifests/1"))[0] == 503
    hub.image("library/new", "1", [b"new"])
    cache.apply(offline=False)
    assert (await cache.get(Listener.PROXY, "/v2/library/new/manifests/1"))[0] == 200


# -- hubcache_max_stale ----------------------------------------------------------------------------------------------


@EACH_LISTENER
async def test_stale_tag_is_served_in_an_outage_until_max_stale(
    cache: Cache, hub: Hub, image: Image, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    hub.stop()
    for ahead, status in ((TTL - 10, 200), (TTL + 10, 200), (TTL + MAX_STALE - 10, 200), (TTL + MAX_STALE + 10, 503)):
        clock.ahead = ahead
        for method in ("HEAD", "GET"):
            answer, _ = await cache.ask(listener, method, "/v2/library/app/manifests/1")
            assert isinstance(answer, Answer)
            assert answer.status == status, ahead
            if status == 200:
                assert answer.result is (Result.HIT if ahead < TTL else Result.STALE)


@EACH_LISTENER
async def test_stale_answer_states_its_age(
    cache: Cache, hub: Hub, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    hub.stop()
    clock.ahead = TTL + 1000
    answer, _ = await cache.ask(listener, "GET", "/v2/library/app/manifests/1")
    assert isinstance(answer, Answer)
    state, _, reason = answer.headers["Cache-Status"].partition("; detail=")
    assert state.startswith("hubcache; hit; ttl=-")
    assert 990 <= int(state.rpartition("-")[2]) <= 1010
    assert "localhost" in reason


@EACH_LISTENER
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
async def test_max_stale_0_never_serves_a_stale_tag(
    hub: Hub, image: Image, listener: Listener, restart: bool, tmp_path: Path
) -> None:
    async with running(hub, tmp_path / "store", tag_ttl=TTL, max_stale=0.0) as cache:
        await pull(cache, image)
        if not restart:
            hub.stop()
            assert (await cache.get(listener, "/v2/library/app/manifests/1"))[0] == 200, "it is fresh"
            cache.apply(tag_ttl=0.0)
            assert (await cache.get(listener, "/v2/library/app/manifests/1"))[0] == 503
            return
    hub.stop()
    async with running(hub, tmp_path / "store", tag_ttl=0.0, max_stale=0.0) as cache:
        assert (await cache.get(listener, "/v2/library/app/manifests/1"))[0] == 503


@EACH_LISTENER
async def test_content_by_digest_does_not_age_but_the_visibility_of_its_repository_does(
    cache: Cache, hub: Hub, image: Image, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an outage the visibility of a repository cannot be validated; `hubcache_max_stale` bounds that, too."""
    clock = Clock(monkeypatch, cache)
    hub.stop()
    by_digest = [one for one in requests_of(image) if ":" in one[1]]
    assert len(by_digest) == 6
    for ahead, status in ((VISIBILITY_LIFETIME + MAX_STALE - 10, 200), (VISIBILITY_LIFETIME + MAX_STALE + 10, 503)):
        clock.ahead = ahead
        for method, path in by_digest:
            answer, _ = await cache.ask(listener, method, path)
            assert isinstance(answer, Answer)
            assert answer.status == status, (ahead, method, path)


@EACH_LISTENER
async def test_tag_is_fresh_again_after_the_outage(cache: Cache, hub: Hub, image: Image, listener: Listener) -> None:
    cache.apply(tag_ttl=0.0)
    hub.stop()
    answer, _ = await cache.ask(listener, "GET", "/v2/library/app/manifests/1")
    assert isinstance(answer, Answer)
    assert answer.result is Result.STALE
    moved = hub.image("library/app", "1", [b"moved"])
    hub.start()
    cache.engine.breakers.circuits.clear()
    assert await cache.get(listener, "/v2/library/app/manifests/1") == (200, moved.manifest)
