"""Private images are forwarded, or stored for their users, and never served to other clients."""

import asyncio
from pathlib import Path

import pytest
from hubcache.serve import access
from hubcache.serve.messages import Answer, Forward, Listener, Result
from support.engine import Cache, running
from support.standin import Fault, Hub, Image, random_bytes
from support.upstreams import record_requests
from support.users import EACH_LISTENER, SECRET, Clock, assert_refused, bearer, pull, requests_of, short_times, until


@pytest.fixture
def short_time_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short time-outs for tests that wait for one. In other tests a busy machine would exceed them."""
    short_times(monkeypatch)


async def test_private_image_is_forwarded_with_the_clients_credentials_and_not_stored(
    cache: Cache, hub: Hub, secret: Image
) -> None:
    own = bearer(hub, "alice", SECRET)
    for method, path in requests_of(secret):
        outcome, _ = await cache.ask(Listener.PROXY, method, path, authorization=own)
        assert isinstance(outcome, Forward)
        assert outcome.authorization == own
    assert cache.engine.store.usage.sizes == {}
    assert cache.engine.store.usage.reserved == 0


@EACH_LISTENER
async def test_anonymous_client_gets_nothing_of_a_private_image(
    cache: Cache, secret: Image, listener: Listener
) -> None:
    await assert_refused(cache, secret, listener)


async def test_client_credentials_are_used_at_the_proxy_only(cache: Cache, hub: Hub, secret: Image) -> None:
    await assert_refused(cache, secret, Listener.MIRROR, authorization=bearer(hub, "alice", SECRET))
    assert hub.count(user="alice") == 0


@pytest.mark.usefixtures("short_time_outs")
async def test_clients_of_private_images_do_not_wait_while_upstream_is_down(
    cache: Cache, hub: Hub, secret: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = bearer(hub, "alice", SECRET)
    hub.blackhole()
    sent = record_requests(monkeypatch)
    await cache.ask(Listener.PROXY, "GET", f"/v2/{SECRET}/manifests/1", authorization=own)
    assert sent
    sent.clear()
    status, _ = await cache.get(Listener.PROXY, f"/v2/{SECRET}/manifests/1", authorization=own)
    assert (status, sent) == (503, [])


async def test_stored_private_image_costs_its_user_no_pull_and_no_download(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    assert set(await pull(cache_with_secret, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
    assert hub.count(method="GET", kind="manifest", user="alice") == 0
    assert hub.count(kind="cdn", method="GET") == 0
    assert hub.count(method="HEAD", user="alice") == 1, "one check for this token and repository"


async def test_stored_private_image_is_served_byte_for_byte(cache_with_secret: Cache, hub: Hub, secret: Image) -> None:
    own = bearer(hub, "alice", SECRET)
    answer, body = await cache_with_secret.ask(Listener.PROXY, "GET", f"/v2/{SECRET}/manifests/1", authorization=own)
    assert body == secret.manifest
    status, body = await cache_with_secret.get(
        Listener.PROXY, f"/v2/{SECRET}/blobs/{secret.layers[0]}", authorization=own
    )
    assert (status, body) == (200, random_bytes(100_000, "secret"))
    assert isinstance(answer, Answer)
    assert answer.result is Result.REVALIDATED


@EACH_LISTENER
async def test_anonymous_client_gets_nothing_of_a_stored_private_image(
    cache_with_secret: Cache, secret: Image, listener: Listener
) -> None:
    await assert_refused(cache_with_secret, secret, listener)


async def test_other_user_gets_nothing_of_a_stored_private_image(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    await assert_refused(cache_with_secret, secret, Listener.PROXY, authorization=bearer(hub, "bob", SECRET))


async def test_invented_token_gets_nothing_of_a_stored_private_image(cache_with_secret: Cache, secret: Image) -> None:
    await assert_refused(cache_with_secret, secret, Listener.PROXY, authorization="Bearer hub-alice-0123")


async def test_refusal_of_a_stored_private_image_names_the_realm_of_the_hub(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    """A client that sent credentials is refused in the same way, so that it gets a token with the right scope."""
    for headers in ({}, {"authorization": bearer(hub, "bob", SECRET)}):
        answer, _ = await cache_with_secret.ask(Listener.PROXY, "GET", f"/v2/{SECRET}/manifests/1", **headers)
        assert isinstance(answer, Answer)
        assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="https://auth.docker.io/token"')


async def test_mirror_does_not_serve_a_stored_private_image_even_to_its_user(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    await assert_refused(cache_with_secret, secret, Listener.MIRROR, authorization=bearer(hub, "alice", SECRET))


async def test_accepted_token_does_not_make_another_token_accepted(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    path = f"/v2/{SECRET}/blobs/{secret.layers[0]}"
    first, second = bearer(hub, "alice", SECRET), bearer(hub, "alice", SECRET)
    for own, checks in ((first, 1), (first, 1), (second, 2), (first, 2), (second, 2)):
        assert (await cache_with_secret.get(Listener.PROXY, path, authorization=own))[0] == 200
        assert hub.count(method="HEAD", user="alice", kind="blob") == checks


async def test_token_accepted_for_one_repository_is_checked_for_another(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    """Both repositories have the layer; the token is valid for one of them."""
    hub.image("alice/other", "1", [random_bytes(100_000, "secret")])
    hub.private("alice/other", {"alice"})
    own = bearer(hub, "alice", SECRET)
    assert (await cache_with_secret.get(Listener.PROXY, f"/v2/{SECRET}/blobs/{secret.layers[0]}", authorization=own))[
        0
    ] == 200
    status, _ = await cache_with_secret.get(
        Listener.PROXY, f"/v2/alice/other/blobs/{secret.layers[0]}", authorization=own
    )
    assert status == 401


async def test_revoked_token_is_refused_when_its_acceptance_expires(
    cache_with_secret: Cache, hub: Hub, secret: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache_with_secret)
    own = bearer(hub, "alice", SECRET)
    assert set(await pull(cache_with_secret, secret, authorization=own)) == {200}
    hub.accounts.revoke()
    clock.ahead = access.AUTHORIZED_SECONDS + 1
    await assert_refused(cache_with_secret, secret, Listener.PROXY, authorization=own)
    assert set(await pull(cache_with_secret, secret, authorization=bearer(hub, "alice", SECRET))) == {200}


async def test_user_who_lost_access_is_refused_when_the_acceptance_expires(
    cache_with_secret: Cache, hub: Hub, secret: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache_with_secret)
    assert set(await pull(cache_with_secret, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
    hub.accounts.private[SECRET] = set()
    clock.ahead = access.AUTHORIZED_SECONDS + 1
    await assert_refused(cache_with_secret, secret, Listener.PROXY, authorization=bearer(hub, "alice", SECRET))


@pytest.mark.usefixtures("short_time_outs")
@pytest.mark.parametrize("fault", ["stopped", "blackholed", "500", "429", "html"])
async def test_private_image_is_not_served_while_upstream_does_not_answer(
    cache_with_secret: Cache, hub: Hub, secret: Image, fault: str
) -> None:
    own = bearer(hub, "alice", SECRET)
    match fault:
        case "stopped":
            hub.stop()
        case "blackholed":
            hub.blackhole()
        case "html":
            hub.faults.add(Fault(kind="[mb]*", status=200, body="<html>maintenance</html>"))
        case status:
            hub.faults.add(Fault(kind="[mb]*", status=int(status), body="no"))
    for reference in ("manifests/1", f"manifests/{secret.digest}"):
        outcome, body = await cache_with_secret.ask(
            Listener.PROXY, "GET", f"/v2/{SECRET}/{reference}", authorization=own
        )
        assert secret.manifest not in body
        assert isinstance(outcome, Forward) or outcome.status in (429, 502, 503)


async def test_stored_private_image_is_not_served_after_switching_to_bypass(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    cache_with_secret.apply(authorize=False)
    for listener in Listener:
        await assert_refused(cache_with_secret, secret, listener)
    own = bearer(hub, "alice", SECRET)
    outcome, _ = await cache_with_secret.ask(Listener.PROXY, "GET", f"/v2/{SECRET}/manifests/1", authorization=own)
    assert isinstance(outcome, Forward)


async def test_private_image_stays_private_after_a_restart(hub: Hub, secret: Image, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store", authorize=True) as before:
        assert set(await pull(before, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
    async with running(hub, tmp_path / "store", authorize=True) as after:
        for listener in Listener:
            await assert_refused(after, secret, listener)
        hub.stop()
        for method, path in requests_of(secret):
            answer, _ = await after.ask(Listener.PROXY, method, path)
            assert isinstance(answer, Answer)
            assert answer.status in (401, 503)


async def test_refused_anonymous_request_does_not_disturb_the_users_pull_of_the_same_blob(
    authorizing_cache: Cache, hub: Hub, secret: Image
) -> None:
    """The blob is not stored, and the refusal of the anonymous client does not apply to the user."""
    path = f"/v2/{SECRET}/blobs/{secret.layers[0]}"
    slow = hub.faults.add(Fault(kind="blob", method="GET", delay=0.4, times=1))
    anonymous = asyncio.create_task(authorizing_cache.get(Listener.PROXY, path))
    await until(lambda: slow.hits)
    own = bearer(hub, "alice", SECRET)
    assert (await authorizing_cache.get(Listener.PROXY, path, authorization=own))[0] == 200
    assert (await anonymous)[0] == 401
