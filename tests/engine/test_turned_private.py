"""Repositories that turn private or public: when that is noticed, and what is served until then."""

from pathlib import Path

import pytest
from hubcache.decide.policy import VISIBILITY_LIFETIME
from hubcache.serve.messages import Answer, Forward, Listener
from support.engine import Cache, running
from support.standin import Fault, Hub, Image, random_bytes
from support.users import (
    EACH_LISTENER,
    REFUSED,
    SECRET,
    Clock,
    assert_refused,
    bearer,
    pull,
    requests_of,
    turn_private,
)

pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture
async def app(cache: Cache, hub: Hub) -> Image:
    """A stored public image of alice, whose repository has another tag that is not stored."""
    image = hub.image("alice/app", "1", [random_bytes(100_000)])
    hub.image("alice/app", "2", [b"two"])
    assert set(await pull(cache, image)) == {200}
    hub.reset_log()
    return image


@EACH_LISTENER
@pytest.mark.parametrize("status", [401, 403])
async def test_repository_is_unreadable_at_once_when_upstream_refuses_one_tag(
    cache: Cache, hub: Hub, app: Image, status: int, listener: Listener
) -> None:
    """A refusal of one tag makes all stored content unreadable, also in a later outage."""
    turn_private(hub, "alice/app")
    if status == 403:
        hub.faults.add(Fault(kind="[mb]*", status=403, body={"errors": [{"code": "DENIED", "message": "no"}]}))
    refused = 404 if listener is Listener.MIRROR else status
    assert (await cache.get(listener, "/v2/alice/app/manifests/2"))[0] == refused
    for method, path in requests_of(app):
        answer, _ = await cache.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert answer.status == refused, (method, path)
    hub.stop()
    cache.engine._access._negative_cache._errors.clear()
    for method, path in requests_of(app):
        answer, _ = await cache.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert answer.status in (refused, 503), (method, path)


@EACH_LISTENER
async def test_404_makes_the_next_request_ask_upstream(cache: Cache, hub: Hub, app: Image, listener: Listener) -> None:
    """Some registries answer 404 for content that an anonymous client may not read."""
    hub.faults.add(Fault(kind="[mb]*", status=404, body={"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}))
    assert (await cache.get(listener, "/v2/alice/app/manifests/2"))[0] == 404
    for method, path in requests_of(app):
        answer, _ = await cache.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert answer.status == 404, (method, path)


@EACH_LISTENER
async def test_content_that_upstream_answered_404_for_is_not_served_in_a_later_outage(
    cache: Cache, hub: Hub, app: Image, listener: Listener
) -> None:
    cache.apply(negative_ttl=0.0)
    hub.faults.add(Fault(kind="[mb]*", status=404, body={"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}))
    assert (await cache.get(listener, "/v2/alice/app/manifests/2"))[0] == 404
    for method, path in requests_of(app):
        await cache.ask(listener, method, path)
    hub.stop()
    statuses = {path: (await cache.get(listener, path))[0] for method, path in requests_of(app) if method == "GET"}
    assert set(statuses.values()) == {503}, statuses


@EACH_LISTENER
async def test_mistyped_tag_does_not_make_a_public_repository_unreadable(
    cache: Cache, hub: Hub, app: Image, listener: Listener
) -> None:
    assert (await cache.get(listener, "/v2/alice/app/manifests/latets"))[0] == 404
    hub.stop()
    assert set(await pull(cache, app, listener)) == {200}


@EACH_LISTENER
async def test_repository_that_turned_private_unnoticed_is_unreadable_after_the_lifetime_of_its_visibility(
    cache: Cache, hub: Hub, app: Image, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is sent upstream while the tag is fresh, but the visibility of the repository expires earlier."""
    cache.apply(tag_ttl=VISIBILITY_LIFETIME * 10)
    clock = Clock(monkeypatch, cache)
    turn_private(hub, "alice/app")
    clock.ahead = VISIBILITY_LIFETIME - 60
    assert set(await pull(cache, app, listener)) == {200}
    assert hub.count() == 0
    clock.ahead = VISIBILITY_LIFETIME + 1
    for method, path in reversed(requests_of(app)):
        answer, _ = await cache.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert answer.status == REFUSED[listener], (method, path)


@EACH_LISTENER
async def test_visibility_survives_a_restart_within_its_lifetime(
    hub: Hub, listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = hub.image("alice/app", "1")
    async with running(hub, tmp_path / "store", tag_ttl=VISIBILITY_LIFETIME * 10) as before:
        assert set(await pull(before, image)) == {200}
    turn_private(hub, "alice/app")
    async with running(hub, tmp_path / "store", tag_ttl=VISIBILITY_LIFETIME * 10) as after:
        clock = Clock(monkeypatch, after)
        assert set(await pull(after, image, listener)) == {200}
        clock.ahead = VISIBILITY_LIFETIME + 1
        await assert_refused(after, image, listener)


@EACH_LISTENER
async def test_repository_that_turned_public_is_served_when_the_refusal_expires(
    cache_with_secret: Cache, hub: Hub, secret: Image, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is served as soon as the remembered refusal expires, although the refused token is valid for longer."""
    clock = Clock(monkeypatch, cache_with_secret)
    await assert_refused(cache_with_secret, secret, listener)
    hub.public(SECRET)
    clock.ahead = cache_with_secret.settings.negative_ttl + 1
    assert set(await pull(cache_with_secret, secret, listener)) == {200}


async def test_user_can_read_a_repository_after_it_turned_private(cache: Cache, hub: Hub, app: Image) -> None:
    turn_private(hub, "alice/app")
    cache.apply(tag_ttl=0.0)
    own = bearer(hub, "alice", "alice/app")
    outcome, _ = await cache.ask(Listener.PROXY, "GET", "/v2/alice/app/manifests/1", authorization=own)
    assert isinstance(outcome, Forward)
    assert outcome.authorization == own


async def test_names_of_missing_repositories_are_not_kept(cache: Cache, hub: Hub) -> None:
    """The Hub refuses missing repositories as private ones, and clients can invent names without end."""
    for number in range(20):
        assert (await cache.get(Listener.MIRROR, f"/v2/nobody/r{number}/manifests/1"))[0] == 404
    assert not cache.engine._access._visibility._recent
