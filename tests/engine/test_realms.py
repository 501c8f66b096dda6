"""The realm in challenges for clients, answers to token requests, and realms that get no password."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hubcache.oci.registry import Registry
from hubcache.serve.challenges import TOKEN_PATH, client_challenge, client_error, is_on_registry_host
from hubcache.serve.messages import LOCAL_TOKEN, UNVERIFIED_TOKEN, Answer, Forward, Listener
from hubcache.transfer.challenge import Challenge
from hypothesis import given
from hypothesis import strategies as st
from support.engine import Cache, read, running
from support.standin import Fault, Hub, Image
from support.users import basic, bearer, pull, requests_of

REPO = "library/app"
HOST = "registry.example.org"
REALM = f"https://{HOST}{TOKEN_PATH}"


pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture
def image(hub: Hub) -> Image:
    hub.image("alice/secret", "1", [b"a secret"])
    hub.private("alice/secret", {"alice": "alice's"})
    return hub.image(REPO, "1")


@pytest.fixture
def start(hub: Hub, image: Image, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that starts a cache of a registry other than Docker Hub."""
    return lambda **more: running(hub, tmp_path / "store", registries=(Registry.parse(f"{HOST}={hub.url()}"),), **more)


@pytest.fixture
async def cache(start: Callable[..., Any]) -> AsyncIterator[Cache]:
    async with start() as started:
        yield started


async def ask_token(
    cache: Cache, method: str = "GET", authorization: str | None = None, **fields: str
) -> tuple[Answer, bytes]:
    """Send a token request to the realm that clients get in challenges."""
    form = urlencode({"service": "registry.docker.io", **fields})
    headers = {} if authorization is None else {"authorization": authorization}
    path = f"{TOKEN_PATH}?{form}" if method == "GET" else TOKEN_PATH
    request = cache.request(Listener.PROXY, method, path, content_type="application/x-www-form-urlencoded", **headers)
    if method == "POST":
        assert await cache.engine.answer(request) is None  # the body must be read first
        object.__setattr__(request, "body", form.encode())
    answer = await cache.engine.answer(request)
    assert isinstance(answer, Answer)
    return answer, await read(answer)


def realm_of(answer: Answer | Forward) -> str:
    assert isinstance(answer, Answer)
    challenge = Challenge.parse(answer.headers["WWW-Authenticate"])
    assert challenge is not None
    return challenge.realm


# -- challenges for clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "realm", "expected"),
    [
        ("registry.gitlab.com", "https://gitlab.com/jwt/auth", f"https://registry.gitlab.com{TOKEN_PATH}"),
        ("docker.elastic.co", "https://docker-auth.elastic.co/auth", f"https://docker.elastic.co{TOKEN_PATH}"),
        ("ghcr.io", "https://ghcr.io/token", "https://ghcr.io/token"),
        ("lscr.io", "https://ghcr.io/token", "https://ghcr.io/token"),
        ("registry.example:5000", "https://registry.example/token", f"https://registry.example:5000{TOKEN_PATH}"),
        ("registry.example:5000", "https://registry.example:5000/t", "https://registry.example:5000/t"),
        ("registry.example", "http://auth.example/token", "http://auth.example/token"),
        ("one.github.io", "https://two.github.io/token", "https://two.github.io/token"),
        ("registry.example", "nonsense", "nonsense"),
        ("ghcr.io=http://localhost:5000", "http://localhost:5001/token", f"https://ghcr.io{TOKEN_PATH}"),
        ("ghcr.io=http://localhost:5000", "http://192.0.2.1/token", "http://192.0.2.1/token"),
        ("registry-1.docker.io", "https://auth.docker.io/token", "https://auth.docker.io/token"),
        ("registry-1.docker.io=http://localhost:5000", "http://x.example/t", "https://auth.docker.io/token"),
    ],
)
def test_realm_in_the_registrys_domain_is_replaced_by_one_on_its_own_host(
    registry: str, realm: str, expected: str
) -> None:
    challenge = Challenge(realm, "service", "scope", "insufficient_scope")
    assert client_challenge(Registry.parse(registry), challenge) == Challenge(expected, "service", "scope", None)
    assert client_challenge(Registry.parse(registry), challenge, "invalid_token").error == "invalid_token"


@given(st.text(max_size=40) | st.text("htps:/[]@.%?#0aß\udcff ", max_size=30).map("https://".__add__))
def test_any_realm_becomes_a_challenge_for_clients(realm: str) -> None:
    registry = Registry.parse("registry.example")
    assert client_challenge(registry, Challenge(realm, None, None)).realm in (
        realm,
        f"https://{registry.host}{TOKEN_PATH}",
    )


@pytest.mark.parametrize(
    ("error", "presented", "sent", "expected"),
    [
        ("insufficient_scope", None, "Bearer ours", None),
        ("insufficient_scope", "Bearer local", "Bearer ours", "insufficient_scope"),
        ("insufficient_scope", "Bearer own", "Bearer own", "insufficient_scope"),
        ("invalid_token", "Bearer local", "Bearer ours", None),
        ("invalid_token", "Bearer own", "Bearer own", "invalid_token"),
        ("invalid_token", None, None, None),
        (None, "Bearer own", "Bearer own", None),
    ],
)
def test_challenge_has_an_error_only_for_the_clients_own_token(
    error: str | None, presented: str | None, sent: str | None, expected: str | None
) -> None:
    assert client_error(error, presented, sent) == expected


def test_realm_on_another_port_of_the_registrys_host_is_not_intercepted() -> None:
    registry = Registry.parse("registry.example:5000")
    assert is_on_registry_host(registry, "https://registry.example:5000/token")
    assert not is_on_registry_host(registry, "https://registry.example/token")
    assert not is_on_registry_host(registry, "http://registry.example:5000/token")


async def test_every_challenge_has_the_intercepted_realm(cache: Cache) -> None:
    for path in ("/v2/", "/v2/alice/secret/manifests/1", f"/v2/alice/secret/blobs/sha256:{'0' * 64}"):
        answer, _ = await cache.ask(Listener.PROXY, "GET", path)
        assert realm_of(answer) == REALM, path


async def test_realm_in_another_domain_is_passed_on_unchanged(cache: Cache, hub: Hub) -> None:
    hub.realm = hub.realm.replace("localhost", "127.0.0.1")
    answer, _ = await cache.ask(Listener.PROXY, "GET", "/v2/alice/secret/manifests/1")
    assert realm_of(answer) == hub.realm


async def test_refusal_of_the_token_service_becomes_a_challenge(cache: Cache, hub: Hub) -> None:
    """ghcr.io issues anonymous clients no token for private content; a 403 would prevent clients from logging in."""
    hub.faults.add(Fault(kind="token", status=403, body={"errors": [{"code": "DENIED", "message": "denied"}]}))
    for path in ("manifests/1", "tags/list"):
        answer, _ = await cache.ask(Listener.PROXY, "GET", f"/v2/alice/secret/{path}")
        assert isinstance(answer, Answer)
        assert (answer.status, realm_of(answer)) == (401, REALM)


# -- token requests --------------------------------------------------------------------------------------------------


async def test_anonymous_clients_get_a_local_token(cache: Cache, hub: Hub) -> None:
    answer, body = await ask_token(cache, scope=f"repository:{REPO}:pull")
    assert (answer.status, json.loads(body)["token"]) == (200, LOCAL_TOKEN)
    assert hub.count() == 0


async def test_user_gets_the_token_services_answer(cache: Cache, hub: Hub) -> None:
    scope = "repository:alice/secret:pull"
    for answer, body in (
        await ask_token(cache, authorization=basic("alice", "alice's"), scope=scope),
        await ask_token(cache, "POST", grant_type="password", username="alice", password="alice's", scope=scope),
    ):
        assert answer.status == 200
        assert hub.accounts.tokens[json.loads(body)["token"]].user == "alice"
    wrong, _ = await ask_token(cache, authorization=basic("alice", "guess"))
    assert wrong.status == 401
    assert [record.method for record in hub.requests(kind="token")] == ["GET", "POST", "GET"]


async def test_query_of_the_real_realm_is_kept(cache: Cache, hub: Hub) -> None:
    hub.realm += "?tenant=one%2B"
    await ask_token(cache, authorization=basic("alice", "alice's"), scope="repository:alice/secret:pull")
    [record] = hub.requests(kind="token")
    assert record.path.startswith("/token?tenant=one%2B&service=registry.docker.io&scope=")


async def test_mirror_does_not_serve_the_realms_path(cache: Cache) -> None:
    request = cache.request(Listener.MIRROR, "GET", TOKEN_PATH)
    assert not cache.engine.token_service.serves(request)


# -- outages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("stopped", [("token",), ("token", "registry", "cdn")])
async def test_stored_public_image_is_served_while_the_token_service_is_down(
    start: Callable[..., Any], hub: Hub, image: Image, stopped: tuple[str, ...], restarted: bool
) -> None:
    """Both anonymous and logged-in clients get it, from the ping on."""
    async with start() as cache:
        await pull(cache, image)
        if not restarted:
            hub.stop(*stopped)
            await pulled_by_all(cache, image)
    if restarted:
        hub.stop(*stopped)
        async with start() as cache:
            await pulled_by_all(cache, image)


async def pulled_by_all(cache: Cache, image: Image) -> None:
    ping, _ = await cache.ask(Listener.PROXY, "GET", "/v2/")
    assert realm_of(ping) == REALM
    for authorization in (None, basic("alice", "alice's")):
        answer, body = await ask_token(cache, authorization=authorization, scope=f"repository:{REPO}:pull")
        assert answer.status == 200
        assert set(await pull(cache, image, authorization=f"Bearer {json.loads(body)['token']}")) == {200}


@pytest.mark.parametrize("restarted", [False, True])
async def test_private_image_is_503_while_the_token_service_is_down(
    start: Callable[..., Any], hub: Hub, image: Image, restarted: bool
) -> None:
    """A 401, "unauthorized", would suggest that the login is wrong."""
    secret = hub.image("alice/secret", "1", [b"a secret"])
    async with start() as cache:
        for path in ("manifests/1", f"manifests/{secret.digest}", f"blobs/{secret.layers[0]}"):
            assert (await cache.get(Listener.PROXY, f"/v2/alice/secret/{path}"))[0] == 401
        if not restarted:
            await refused_with_503(cache, hub, secret)
    if restarted:
        async with start() as cache:
            await refused_with_503(cache, hub, secret)


async def refused_with_503(cache: Cache, hub: Hub, secret: Image) -> None:
    """Assert that a user's requests for a private image are answered 503 while the token service is down."""
    hub.stop("token")
    _, body = await ask_token(cache, authorization=basic("alice", "alice's"), scope="repository:alice/secret:pull")
    assert json.loads(body)["token"] == UNVERIFIED_TOKEN
    for method, path in requests_of(secret):
        answer, refusal = await cache.ask(Listener.PROXY, method, path, authorization=f"Bearer {UNVERIFIED_TOKEN}")
        assert isinstance(answer, Answer)
        assert answer.status == 503, (method, path)
        assert method == "HEAD" or "token service cannot be reached" in json.loads(refusal)["errors"][0]["message"]


async def test_client_is_challenged_for_a_new_token_after_the_outage(cache: Cache, hub: Hub, image: Image) -> None:
    """RFC 6750: `invalid_token` makes clients request a new token."""
    hub.stop("token")
    await ask_token(cache, authorization=basic("alice", "alice's"), scope="repository:alice/secret:pull")
    hub.start()
    cache.engine.breakers.circuits.clear()
    own = f"Bearer {UNVERIFIED_TOKEN}"
    answer, _ = await cache.ask(Listener.PROXY, "GET", "/v2/alice/secret/manifests/1", authorization=own)
    assert isinstance(answer, Answer)
    assert answer.status == 401
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert set(await pull(cache, image, authorization=own)) == {200}


async def test_users_token_from_before_the_outage_stays_valid(cache: Cache, hub: Hub) -> None:
    own = bearer(hub, "alice", "alice/secret")
    hub.stop("token")
    outcome, _ = await cache.ask(Listener.PROXY, "GET", "/v2/alice/secret/manifests/1", authorization=own)
    assert isinstance(outcome, Forward)


# -- passwords -------------------------------------------------------------------------------------------------------


async def login(cache: Cache, method: str) -> tuple[Answer, bytes]:
    """Request a token as `docker login` (GET) or podman (POST) does, or with a refresh token."""
    match method:
        case "GET":
            return await ask_token(cache, authorization=basic("alice", "alice's"), account="alice")
        case "POST":
            return await ask_token(cache, "POST", grant_type="password", username="alice", password="alice's")
    return await ask_token(cache, "POST", grant_type="refresh_token", refresh_token="secret")


@pytest.mark.parametrize("method", ["GET", "POST", "refresh"])
async def test_no_password_is_sent_to_a_realm_in_another_domain(cache: Cache, hub: Hub, method: str) -> None:
    hub.realm = hub.realm.replace("localhost", "127.0.0.1")
    answer, body = await login(cache, method)
    assert answer.status == 502
    assert "another domain" in json.loads(body)["errors"][0]["message"]
    assert hub.count(kind="token") == 0


@pytest.mark.parametrize("method", ["GET", "POST", "refresh"])
async def test_no_password_is_sent_over_http_for_an_https_registry(hub: Hub, tmp_path: Path, method: str) -> None:
    registry = Registry.parse(f"{HOST}=https://localhost:{hub.ports['registry']}")
    async with running(hub, tmp_path / "store", registries=(registry,)) as cache:
        await cache.engine.store.registries.put_challenge(HOST, Challenge(hub.realm, hub.service, None).render())
        answer, body = await login(cache, method)
    assert answer.status == 502
    assert "not protected" in json.loads(body)["errors"][0]["message"]
    assert hub.count(kind="token") == 0


async def test_public_images_are_pulled_where_no_password_may_be_sent(cache: Cache, hub: Hub, image: Image) -> None:
    hub.realm = hub.realm.replace("localhost", "127.0.0.1")
    _, body = await ask_token(cache, authorization=basic("alice", "alice's"), scope=f"repository:{REPO}:pull")
    own = f"Bearer {json.loads(body)['token']}"
    assert set(await pull(cache, image, authorization=own)) == {200}
    assert {record.authorization for record in hub.requests(kind="token")} <= {None}


async def test_replaced_docker_hub_has_the_same_rule(hub: Hub, tmp_path: Path) -> None:
    hub.realm = hub.realm.replace("localhost", "127.0.0.1")
    async with running(hub, tmp_path / "store") as cache:
        headers = {"authorization": basic("alice", "alice's")}
        request = cache.request(Listener.PROXY, "GET", "/token?account=alice", **headers)
        answer = await cache.engine.token_service.answer(request)
        assert answer.status == 502
    assert hub.count(kind="token") == 0
