"""Tokens: one fetch for concurrent requests, reuse while valid, and no secrets for other services."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web
from hubcache.oci.account import Account
from hubcache.oci.errors import BadUpstream, RegistryError, TooManyRequests, Unauthorized, Unavailable
from hubcache.transfer import tokens as tokens_module
from hubcache.transfer.breaker import CircuitBreakers
from hubcache.transfer.challenge import Challenge
from hubcache.transfer.session import open_download_session, open_session
from hubcache.transfer.tokens import Tokens, parse_token, pull_scope
from hubcache.transfer.upstream_client import UpstreamClient
from hypothesis import given, settings
from hypothesis import strategies as st
from support.standin import Fault, Hub
from support.upstreams import RecordingObserver, UpstreamSetup, upstream_to
from yarl import URL

SCOPE = pull_scope("library/debian")
ORIGIN = URL("http://127.0.0.1")
"""Origin of a registry that has a local address, as the servers of these tests have."""


class Clock:
    """The clock of `Tokens`, set by the test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def line(hub: Hub) -> AsyncIterator[UpstreamSetup]:
    hub.image("library/debian", "stable")
    async with upstream_to(hub) as opened:
        yield opened


def challenge_of(hub: Hub, realm: str | None = None) -> Challenge:
    return Challenge(realm or hub.realm, hub.service, None)


async def test_concurrent_requests_share_one_token_fetch(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="token", delay=0.1))
    tokens = await asyncio.gather(*(line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url())) for _ in range(30)))
    assert len(set(tokens)) == 1
    assert hub.count(kind="token") == 1


async def test_token_is_reused_while_valid_for_its_scope_only(hub: Hub, line: UpstreamSetup) -> None:
    first = await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))
    assert await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url())) == first
    assert await line.tokens.get(challenge_of(hub), pull_scope("library/alpine"), URL(hub.url())) != first
    assert hub.count(kind="token") == 2


async def test_anonymous_request_has_service_and_scope_only(hub: Hub, line: UpstreamSetup) -> None:
    await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))
    [record] = hub.requests(kind="token")
    assert record.authorization is None
    assert record.path.count("&") == 1
    assert "service=registry.docker.io" in record.path
    assert "scope=repository:library/debian:pull" in record.path.replace("%3A", ":").replace("%2F", "/")


async def test_account_token_and_anonymous_token_are_separate(hub: Hub, line: UpstreamSetup) -> None:
    hub.user("alice", "s\N{SNOWMAN}cret:")
    account = Account("alice", "s\N{SNOWMAN}cret:")
    anonymous, own = await asyncio.gather(
        line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url())),
        line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()), account),
    )
    assert ("anonymous" in anonymous, "alice" in own) == (True, True)
    assert await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url())) == anonymous


async def test_repr_of_an_account_has_no_password() -> None:
    assert "secret" not in repr(Account("alice", "secret"))


@pytest.mark.parametrize("lifetime", [None, 100])
async def test_token_is_fetched_again_before_it_expires(
    hub: Hub, line: UpstreamSetup, monkeypatch: pytest.MonkeyPatch, lifetime: int | None
) -> None:
    """Without `expires_in` a token is valid for 60 seconds (distribution spec)."""
    clock = Clock()
    monkeypatch.setattr(line.tokens, "_clock", clock)
    hub.accounts.expires_in = lifetime
    first = await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))
    clock.now += (lifetime or 60) * 0.5
    assert await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url())) == first
    clock.now += (lifetime or 60) * 0.45
    assert await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url())) != first


async def test_refused_token_is_forgotten_unless_there_is_a_newer_one(hub: Hub, line: UpstreamSetup) -> None:
    challenge = challenge_of(hub)
    first = await line.tokens.get(challenge, SCOPE, URL(hub.url()))
    line.tokens.forget(challenge, SCOPE, first)
    second = await line.tokens.get(challenge, SCOPE, URL(hub.url()))
    assert second != first
    line.tokens.forget(challenge, SCOPE, first)
    assert await line.tokens.get(challenge, SCOPE, URL(hub.url())) == second


async def test_next_request_repeats_a_failed_fetch(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="token", status=500, times=1))
    with pytest.raises(Unavailable):
        await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))
    assert await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=500, body="<html>"), Unavailable),
        (Fault(status=404), Unavailable),
        (Fault(status=401, body={"details": "no"}), Unauthorized),
        (Fault(status=403), Unauthorized),
        (Fault(status=200, body="<html>please log in</html>"), Unavailable),
        (Fault(status=200, body={"tokens": "x"}), Unavailable),
        (Fault(status=200, body={"token": ""}), Unavailable),
        (Fault(status=200, body={"token": ["x"]}), Unavailable),
        (Fault(status=200, body="[]"), Unavailable),
        (Fault(status=200, body="x" * (2 << 20)), BadUpstream),
        (Fault(headers={"Content-Encoding": "br"}, status=200, body=b"token"), BadUpstream),
        (Fault(status=200, body={"token": "line\nfeed"}), Unavailable),
        (Fault(status=200, body={"token": "snow\N{SNOWMAN}man"}), Unavailable),
        (Fault(reset=True), Unavailable),
        (Fault(close_after=10), Unavailable),
        (Fault(redirect="https://elsewhere.example/token"), Unavailable),
        (Fault(redirect="loop"), Unavailable),
    ],
)
async def test_answer_without_a_token_is_a_registry_error(
    hub: Hub, line: UpstreamSetup, fault: Fault, expected: type[RegistryError]
) -> None:
    hub.faults.add(replace(fault, kind="token"))
    with pytest.raises(expected):
        await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))


async def test_rate_limited_token_service_has_a_retry_after(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="token", status=429, body="Too Many Requests", headers={"Retry-After": "17"}))
    with pytest.raises(TooManyRequests) as caught:
        await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))
    assert caught.value.retry_after == 17


async def test_token_service_that_is_down_is_unavailable(hub: Hub, line: UpstreamSetup) -> None:
    hub.stop("token")
    with pytest.raises(Unavailable):
        await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))
    assert line.seen.answers == [("token", "error")]


@pytest.mark.parametrize(
    "realm",
    ["ftp://auth.example/token", "/token", "token", "auth.example", "http://", "http://[::1/token", "http://a:99999/",
     "file:///etc/passwd", "unix:///run/x", "http:///token", "http://" + "a" * 70 + ".example/token", "http://a..b/t",
     "http://\udcff.example/", "http://a b/token", "http://localhost:0/token", "https://:443/", "http://[]@"],
)  # fmt: skip
async def test_malformed_realm_is_a_registry_error(line: UpstreamSetup, realm: str) -> None:
    with pytest.raises(RegistryError):
        await line.tokens.get(Challenge(realm, None, None), SCOPE, ORIGIN)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=30) | st.text("http:/[]@.%?#0aß\udcff ", max_size=20).map(lambda text: "http://" + text))
def test_any_realm_is_a_registry_error_when_offline(realm: str) -> None:
    """The realm is parsed before anything is sent, so that this test needs no connection."""

    async def attempt() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        http, downloads = open_session(tls, "test"), open_download_session(tls, "test")
        client = UpstreamClient(http, RecordingObserver(), CircuitBreakers(), http, downloads)
        client.offline = True
        try:
            with pytest.raises(RegistryError):
                await Tokens(client).get(Challenge(realm, "service", None), SCOPE, ORIGIN)
        finally:
            await http.close()
            downloads.close()

    asyncio.run(attempt())


@pytest.mark.parametrize(
    "body",
    [
        b'{"token": "x", "expires_in": ' + b"9" * 400 + b"}",
        b'{"token": "x", "expires_in": NaN}',
        b'{"token": "x", "expires_in": -5}',
        b'{"token": "x", "expires_in": 0}',
        b'{"token": "x", "expires_in": null}',
        b'{"token": "x", "expires_in": "300"}',
        b"[" * 200_000,
        b"\xff\xfe\x00",
        b'{"token": "a\\nb"}',
        b'{"token": "\\ud800"}',
    ],
)
async def test_any_token_document_is_a_token_or_a_registry_error(body: bytes) -> None:
    async with served(body) as (tokens, realm):
        with contextlib.suppress(BadUpstream, Unavailable):
            assert await tokens.get(Challenge(realm, None, None), SCOPE, ORIGIN)


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [("null", 60), ('"300"', 300), ('"soon"', 60), ("true", 60), ("[]", 60), ("300.5", 300.5), ("0", 0), ("-5", 0),
     ("9" * 400, 3600), ('"' + "9" * 50 + '"', 60)],
)  # fmt: skip
def test_invalid_lifetime_becomes_the_default(text: str, lifetime: float) -> None:
    assert parse_token(b'{"token": "x", "expires_in": ' + text.encode() + b"}") == ("x", lifetime)


async def test_memory_for_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries choose how long their tokens are and how many challenges they send."""
    monkeypatch.setattr(tokens_module, "_MAX_CACHED_BYTES", 1 << 20)
    async with served(json.dumps({"token": "x" * 100_000}).encode()) as (tokens, realm):
        for number in range(30):
            await tokens.get(Challenge(realm, str(number), None), SCOPE, ORIGIN)
        assert len(tokens._known) <= 10
    assert Challenge.parse('Bearer realm="' + "x" * 5000 + '"') is None


async def test_realm_with_a_local_address_is_used_only_for_a_local_registry(hub: Hub, line: UpstreamSetup) -> None:
    hub.realm = hub.realm.replace("localhost", "127.0.0.1")
    with pytest.raises(BadUpstream, match="this machine"):
        await line.tokens.get(challenge_of(hub), SCOPE, URL("http://192.0.2.1"))
    assert hub.count() == 0
    assert await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))


async def test_failure_of_a_token_service_is_remembered_until_it_answers(hub: Hub, line: UpstreamSetup) -> None:
    fault = hub.faults.add(Fault(kind="token", status=500))
    with pytest.raises(Unavailable, match="token service cannot be reached: it answered 500"):
        await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))
    assert line.tokens.service_failure(hub.realm) == "it answered 500"
    hub.faults.remove(fault)
    await line.tokens.get(challenge_of(hub), SCOPE, URL(hub.url()))
    assert line.tokens.service_failure(hub.realm) is None


@pytest.mark.parametrize("lifetime", ["1e400", "Infinity", "1e18"])
async def test_no_token_is_kept_for_longer_than_a_day(monkeypatch: pytest.MonkeyPatch, lifetime: str) -> None:
    clock = Clock()
    requested: list[str] = []
    async with served(b'{"token": "x", "expires_in": ' + lifetime.encode() + b"}", requested) as (tokens, realm):
        monkeypatch.setattr(tokens, "_clock", clock)
        await tokens.get(Challenge(realm, None, None), SCOPE, ORIGIN)
        clock.now += 86400.0
        await tokens.get(Challenge(realm, None, None), SCOPE, ORIGIN)
    assert len(requested) == 2


@asynccontextmanager
async def served(body: bytes, requested: list[str] | None = None) -> AsyncIterator[tuple[Tokens, str]]:
    """Tokens, and the realm of a service that answers with `body`."""

    async def answer(request: web.Request) -> web.Response:
        if requested is not None:
            requested.append(request.path)
        return web.Response(body=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/token", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    http, downloads = open_session(tls, "test"), open_download_session(tls, "test")
    try:
        yield (
            Tokens(UpstreamClient(http, RecordingObserver(), CircuitBreakers(), http, downloads)),
            f"http://127.0.0.1:{runner.addresses[0][1]}/token",
        )
    finally:
        await http.close()
        downloads.close()
        await runner.cleanup()


async def test_access_token_is_accepted_as_the_field_name() -> None:
    async with served(json.dumps({"access_token": "x", "expires_in": 300}).encode()) as (tokens, realm):
        assert await tokens.get(Challenge(realm, None, None), SCOPE, ORIGIN) == "x"
