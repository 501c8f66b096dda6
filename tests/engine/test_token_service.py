"""Tokens for clients: the cache issues anonymous tokens, the real service those of users. In an outage, users also get
local tokens, for pulls of public content."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from hubcache.serve.messages import LOCAL_TOKEN, UNVERIFIED_TOKEN, Answer, Forward, Listener, Result
from support.engine import Cache, read, running
from support.standin import Fault, Hub, Image
from support.users import EACH_LISTENER, basic, bearer, pull

REPO = "library/app"
PULL = f"repository:{REPO}:pull"
FORM = {"content_type": "application/x-www-form-urlencoded"}
DOWN = pytest.mark.parametrize("fault", ["stopped", "blackholed", "500", "429", "html"])
EACH_METHOD = pytest.mark.parametrize("method", ["GET", "POST"])


pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture
def image(hub: Hub) -> Image:
    """A public image, a private one, and alice who may read both."""
    hub.image("alice/secret", "1")
    hub.private("alice/secret", {"alice": "alice's"})
    return hub.image(REPO, "1")


@pytest.fixture
async def cache(hub: Hub, image: Image, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store") as started:
        yield started


def break_token_service(hub: Hub, fault: str) -> None:
    match fault:
        case "stopped":
            hub.stop("token")
        case "blackholed":
            hub.blackhole("token")
        case "html":
            hub.faults.add(Fault(kind="token", status=200, body="<html>maintenance</html>"))
        case status:
            hub.faults.add(Fault(kind="token", status=int(status), body="no", headers={"Retry-After": "60"}))


async def ask(
    cache: Cache, method: str, *scopes: str, user: str = "alice", password: str = "alice's"
) -> tuple[Answer, bytes]:
    """Send a token request as docker (GET) or podman (POST) does; without a user, an anonymous GET."""
    fields = [("service", "registry.docker.io"), *(("scope", scope) for scope in scopes)]
    if method == "GET":
        headers = {"authorization": basic(user, password)} if user else {}
        request = cache.request(Listener.PROXY, "GET", f"/token?{urlencode(fields)}", **headers)
    else:
        request = cache.request(Listener.PROXY, "POST", "/token", **FORM)
        fields += [("grant_type", "password"), ("username", user), ("password", password)]
        object.__setattr__(request, "body", urlencode(fields).encode())
    answer = await cache.engine.token_service.answer(request)
    return answer, await read(answer)


def value_of(body: bytes) -> str:
    document = json.loads(body)
    assert document["token"] == document["access_token"]
    return str(document["token"])


# -- anonymous -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [PULL, "repository:alice/secret:pull", f"repository:{REPO}:pull,push"])
async def test_anonymous_token_is_issued_by_the_cache(cache: Cache, hub: Hub, scope: str) -> None:
    answer, body = await ask(cache, "GET", scope, user="")
    assert (answer.status, answer.result, value_of(body)) == (200, Result.LOCAL, LOCAL_TOKEN)
    assert hub.count() == 0


async def test_anonymous_token_grants_no_access_to_a_private_image(cache: Cache) -> None:
    own = f"Bearer {LOCAL_TOKEN}"
    assert (await cache.get(Listener.PROXY, "/v2/alice/secret/manifests/1", authorization=own))[0] == 401


@EACH_LISTENER
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("token", [LOCAL_TOKEN, UNVERIFIED_TOKEN])
async def test_local_token_is_never_sent_upstream(
    cache: Cache, hub: Hub, image: Image, listener: Listener, scheme: str, token: str
) -> None:
    """The requests are pulls of missing and stored images, of private repositories, forwarded reads and pushes."""
    own = f"{scheme} {token}"
    assert set(await pull(cache, image, listener, authorization=own)) == {200}
    for method, path in (
        ("GET", "alice/secret/manifests/1"),
        ("GET", f"{REPO}/tags/list"),
        ("GET", f"{REPO}/referrers/{image.digest}"),
        ("POST", f"{REPO}/blobs/uploads/"),
        ("PUT", f"{REPO}/manifests/1"),
        ("DELETE", f"{REPO}/manifests/1"),
    ):
        outcome, _ = await cache.ask(listener, method, f"/v2/{path}", authorization=own)
        if isinstance(outcome, Forward):
            assert token not in (outcome.authorization or "")
    assert [record for record in hub.log if token in str(record.headers)] == []
    assert hub.count(token="unknown") == 0


async def test_anonymous_tokens_of_the_cache_are_fetched_once_per_scope(cache: Cache, hub: Hub, image: Image) -> None:
    other = hub.image("library/other", "1", [b"another"])
    for _ in range(2):
        cache.apply(tag_ttl=0.0)
        await pull(cache, image)
        await pull(cache, other)
    scopes = [record.path.partition("scope=")[2].partition("&")[0] for record in hub.requests(kind="token")]
    assert sorted(scopes) == ["repository:library/app:pull", "repository:library/other:pull"]


# -- logged in -------------------------------------------------------------------------------------------------------


@EACH_METHOD
async def test_users_token_comes_from_the_real_service(cache: Cache, hub: Hub, method: str) -> None:
    answer, body = await ask(cache, method, "repository:alice/secret:pull")
    assert (answer.status, answer.result) == (200, Result.BYPASS)
    assert hub.accounts.tokens[value_of(body)].access == {"alice/secret": frozenset({"pull"})}
    assert [(r.method, r.user) for r in hub.requests(kind="token")] == [(method, "alice")]


@EACH_METHOD
async def test_users_token_is_returned_unchanged(cache: Cache, hub: Hub, method: str) -> None:
    document = {"token": "x", "access_token": "x", "refresh_token": "y", "unheard-of": 1}
    hub.faults.add(Fault(kind="token", status=200, body=document))
    _, body = await ask(cache, method, PULL)
    assert json.loads(body) == document


@EACH_METHOD
async def test_users_token_is_not_reused_for_another_request(cache: Cache, hub: Hub, method: str) -> None:
    values = {value_of((await ask(cache, method, PULL))[1]) for _ in range(2)}
    assert len(values) == hub.count(kind="token") == 2


@EACH_METHOD
async def test_wrong_password_is_refused_by_the_real_service(cache: Cache, hub: Hub, method: str) -> None:
    for scopes in ((PULL,), ()):
        answer, body = await ask(cache, method, *scopes, password="guess")
        assert answer.status == 401
        assert LOCAL_TOKEN.encode() not in body
    assert hub.count(kind="token", status=401) == 2


@EACH_METHOD
@DOWN
async def test_stored_image_is_pulled_by_a_user_while_the_token_service_is_down(
    cache: Cache, hub: Hub, image: Image, method: str, fault: str
) -> None:
    await pull(cache, image)
    break_token_service(hub, fault)
    answer, body = await ask(cache, method, PULL)
    assert answer.status == 200
    token = value_of(body)
    assert set(await pull(cache, image, authorization=f"Bearer {token}")) == {200}
    assert token == UNVERIFIED_TOKEN


@EACH_METHOD
@DOWN
async def test_local_token_is_issued_for_pulls_only(cache: Cache, hub: Hub, method: str, fault: str) -> None:
    """`docker login`, which names no scope, must not succeed with an unchecked password."""
    break_token_service(hub, fault)
    push = f"repository:{REPO}:push"
    for scopes in ((), (f"{PULL},push",), (PULL, push), (f"{PULL} {push}",), ("registry:catalog:*",)):
        answer, body = await ask(cache, method, *scopes, password="guess")
        assert b"hubcache-" not in body, scopes
        if fault not in ("429", "html"):  # errors of the service itself, which are forwarded
            assert (answer.status, json.loads(body)["errors"][0]["code"]) == (503, "UNAVAILABLE")


@EACH_METHOD
async def test_local_token_grants_no_access_to_private_images_after_the_outage(
    cache: Cache, hub: Hub, method: str
) -> None:
    hub.stop("token")
    _, body = await ask(cache, method, "repository:alice/secret:pull")
    hub.start()
    own = f"Bearer {value_of(body)}"
    cache.engine.breakers.circuits.clear()
    status, _ = await cache.get(Listener.PROXY, "/v2/alice/secret/manifests/1", authorization=own)
    assert status == 401
    assert [record for record in hub.log if "hubcache-" in str(record.headers)] == []


@EACH_METHOD
async def test_wait_for_a_slow_token_service_is_bounded(
    hub: Hub, image: Image, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It ends long before the time-out of the request."""
    monkeypatch.setattr("hubcache.serve.token_service._PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("hubcache.transfer.session.PROGRESS_SECONDS", 600.0)
    silent = hub.faults.add(Fault(kind="token", blackhole=True))
    async with running(hub, tmp_path / "store") as cache, asyncio.timeout(60):
        _, body = await ask(cache, method, PULL)
        assert (value_of(body), silent.hits) == (UNVERIFIED_TOKEN, 1)


async def test_users_token_is_issued_while_the_registry_is_down(cache: Cache, hub: Hub, image: Image) -> None:
    """The registry's challenge is known from an earlier request."""
    await pull(cache, image)
    hub.stop("registry")
    answer, body = await ask(cache, "GET", "repository:alice/secret:pull")
    assert answer.status == 200
    assert value_of(body) in hub.accounts.tokens


async def test_only_the_users_token_is_used_upstream(cache: Cache, hub: Hub) -> None:
    own = bearer(hub, "alice", "alice/secret")
    outcome, _ = await cache.ask(Listener.PROXY, "GET", "/v2/alice/secret/manifests/1", authorization=own)
    assert isinstance(outcome, Forward)
    assert outcome.authorization == own
