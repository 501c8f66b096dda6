"""Registries that answer anonymous clients 404, not 401, for private content: users still see it, and it does not
become public."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.decide.policy import VISIBILITY_LIFETIME
from hubcache.serve.messages import Answer, Listener
from support.engine import Cache, running
from support.standin import Hub, Image, random_bytes
from support.standin.reply import Reply, error
from support.users import EACH_LISTENER, Clock, bearer, pull, requests_of, settled, turn_private

REPO = "alice/app"
TTL, MAX_STALE = 600.0, 86400.0


pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture(params=["NAME_UNKNOWN", "MANIFEST_UNKNOWN"])
def code(request: pytest.FixtureRequest) -> str:
    """The error code of the registry for an anonymous client."""
    return str(request.param)


@pytest.fixture
async def cache(hub: Hub, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cache]:
    """A cache with `hubcache_private=authorize`; a stored image of alice's repository, which turns private and has a
    second tag."""
    registry: Any = hub._registry
    refuse = registry._refused

    def hide(record: Any, request: Any) -> Reply | None:
        refused: Reply | None = refuse(record, request)
        hidden = refused is not None and record.token == "valid"
        return error(404, code, "not found") if hidden else refused

    monkeypatch.setattr(registry, "_refused", hide)
    hub.referrers = True
    async with running(hub, tmp_path / "store", authorize=True, tag_ttl=TTL, max_stale=MAX_STALE) as started:
        yield started


@pytest.fixture
def clock(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, cache)


@pytest.fixture
async def hidden(cache: Cache, hub: Hub, clock: Clock) -> Image:
    """An image that was pushed after the repository turned private, and that alice has pulled."""
    before = hub.image(REPO, "1", [random_bytes(100_000, "public")])
    assert set(await pull(cache, before)) == {200}
    turn_private(hub, REPO)
    clock.ahead = VISIBILITY_LIFETIME + 1
    made = hub.image(REPO, "2", [random_bytes(100_000, "private")])
    assert set(await pull(cache, made, authorization=bearer(hub, "alice", REPO))) == {200}
    return made


@EACH_LISTENER
async def test_image_that_a_user_pulled_is_served_to_no_other_client_in_an_outage(
    cache: Cache, hub: Hub, hidden: Image, listener: Listener
) -> None:
    hub.stop()
    cache.engine._access._negative_cache._errors.clear()
    for method, path in requests_of(hidden):
        answer, _ = await cache.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert answer.status != 200, (method, path)
    await settled(cache)


async def test_user_can_list_referrers_that_are_hidden_from_the_public(cache: Cache, hub: Hub, hidden: Image) -> None:
    tag = hidden.digest.replace(":", "-") + ".sig"
    signature = hub.image(REPO, tag, [b"signature"], subject=hidden, artifact_type="signature")
    own = bearer(hub, "alice", REPO)
    listing = f"/v2/{REPO}/referrers/{hidden.digest}"
    assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{tag}"))[0] == 404
    assert (await cache.get(Listener.PROXY, listing))[0] == 404
    assert await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{tag}", authorization=own) == (
        200,
        signature.manifest,
    )
    status, body = await cache.get(Listener.PROXY, listing, authorization=own)
    assert (status, signature.digest.encode() in body) == (200, True)
