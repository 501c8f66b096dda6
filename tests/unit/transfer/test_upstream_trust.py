"""Where the cache's own requests are sent, and with which credentials: redirects, challenges, tokens, passwords."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from hubcache.oci.account import Account
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, RegistryError, TooManyRequests, Unauthorized, Unavailable
from hubcache.oci.media import COMMON_TYPES
from hubcache.transfer import upstream as upstream_module
from hubcache.transfer.realms import may_receive_password
from support.standin import Fault, Hub, random_bytes
from support.time_outs import short_time_outs
from support.upstreams import UpstreamSetup, tokens_sent, upstream_to

REPO = "library/debian"
ACCEPT = ", ".join(COMMON_TYPES)
LAYER = random_bytes(300_000, "layer")
DIGEST = Digest.of(LAYER)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, so that the tests are fast."""
    monkeypatch.setattr(upstream_module, "_BACKOFF_SECONDS", 0.01)
    short_time_outs(monkeypatch)


@pytest.fixture
async def line(hub: Hub) -> AsyncIterator[UpstreamSetup]:
    hub.image(REPO, "stable", [LAYER])
    async with upstream_to(hub) as opened:
        yield opened


async def read_blob(line: UpstreamSetup, start: int = 0, end: int | None = None) -> bytes:
    async with line.upstream.open_blob(REPO, DIGEST, start, end) as body:
        return b"".join([chunk async for chunk in body.chunks()])


# -- redirects -------------------------------------------------------------------------------------------------------


async def test_authorization_is_sent_to_the_registry_but_not_to_redirect_targets(hub: Hub, line: UpstreamSetup) -> None:
    await read_blob(line)
    await read_blob(line, 10)
    assert all(record.authorization for record in hub.requests(kind="blob")[1:])
    assert [record.authorization for record in hub.requests(kind="cdn")] == [None, None]


async def test_authorization_is_not_sent_after_a_foreign_host_redirects_back(hub: Hub, line: UpstreamSetup) -> None:
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    hub.reset_log()
    hub.faults.add(Fault(kind="cdn", redirect=f"{hub.url()}/v2/{REPO}/tags/list"))
    with pytest.raises(RegistryError):
        await read_blob(line)
    assert [record.authorization for record in hub.requests(kind="tags")] == [None] * hub.count(kind="tags")
    assert hub.count(kind="tags") >= 1


async def test_clients_own_authorization_is_not_sent_to_redirect_targets(hub: Hub, line: UpstreamSetup) -> None:
    reader = await line.upstream.anonymous_authorization(REPO)
    async with line.upstream.open_blob(REPO, DIGEST, authorization=reader) as body:
        assert body.size == len(LAYER)
    assert tokens_sent(hub, kind="blob") == [reader]
    assert [record.authorization for record in hub.requests(kind="cdn")] == [None]


async def test_redirect_loop_is_a_bad_upstream(hub: Hub, line: UpstreamSetup) -> None:
    fault = hub.faults.add(Fault(kind="blob", redirect="loop"))
    with pytest.raises(BadUpstream, match="loop"):
        await read_blob(line)
    assert fault.hits <= 12


@pytest.mark.parametrize(
    "target",
    ["ftp://cdn.example/x", "file:///etc/passwd", "http://", "http://[::1/x", "http://[]@", "http://cdn.example:99999/x",
     "//", "javascript:alert(1)", "http://" + "a" * 70 + ".example/x", "http://a..b/x", "http://a b/"],
)  # fmt: skip
async def test_invalid_redirect_is_a_registry_error(hub: Hub, line: UpstreamSetup, target: str) -> None:
    hub.faults.add(Fault(kind="blob", redirect=target))
    with pytest.raises(RegistryError) as caught:
        await read_blob(line)
    assert caught.value.status in (502, 503)


async def test_signed_url_is_requested_unchanged(hub: Hub, line: UpstreamSetup) -> None:
    signature = "/blobs/x/y?X-Signature=a%2Bb%2f%3D%3d&k=%7E~+%20"
    hub.faults.add(Fault(kind="blob", redirect=hub.url("cdn") + signature))
    with pytest.raises(RegistryError):
        await read_blob(line)
    assert [record.path for record in hub.requests(listener="cdn")] == [signature]


async def test_redirect_from_https_to_http_is_refused() -> None:
    with Hub(tls=True) as secure, Hub() as plain:
        secure.image(REPO, "stable", [LAYER])
        secure.faults.add(Fault(kind="blob", redirect=f"{plain.url('cdn')}/blobs/x/y"))
        async with upstream_to(secure) as line:
            with pytest.raises(BadUpstream, match="https to http"):
                await read_blob(line)
        assert plain.count() == 0


async def test_untrusted_certificate_is_unavailable_and_the_error_says_so() -> None:
    with Hub(tls=True) as secure, Hub(tls=True) as other:
        async with upstream_to(other, secure.url()) as line:
            with pytest.raises(Unavailable, match="its certificate is not trusted"):
                await line.upstream.get_manifest(REPO, "stable", ACCEPT)
            assert not line.upstream.is_reachable, "a failure of the host, which opens its circuit"
        assert secure.count() == 0


async def test_remote_registry_cannot_name_local_addresses(
    hub: Hub, line: UpstreamSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect and a realm with a local address are both refused."""
    monkeypatch.setattr("hubcache.transfer.local_registries.is_local_address", lambda address: False)
    with pytest.raises(BadUpstream, match="this machine or its link"):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    hub.auth = False
    hub.faults.add(Fault(kind="manifest", redirect=f"{hub.url('cdn')}/latest/meta-data/"))
    for read in (line.upstream.get_manifest, line.upstream.head_manifest):
        with pytest.raises(BadUpstream, match="this machine or its link"):
            await read(REPO, "stable", ACCEPT)
    with pytest.raises(BadUpstream, match="this machine or its link"):
        await read_blob(line)
    assert {record.listener for record in hub.log} == {"registry"}


# -- tokens and challenges -------------------------------------------------------------------------------------------


async def test_concurrent_requests_share_one_token(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="token", delay=0.05))
    results = await asyncio.gather(*(line.upstream.head_manifest(REPO, "stable", ACCEPT) for _ in range(20)))
    assert len({head.digest for head in results}) == 1
    assert hub.count(kind="token") == 1


async def test_expired_token_is_replaced_within_the_request(hub: Hub, line: UpstreamSetup) -> None:
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    hub.accounts.revoke()
    hub.reset_log()
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    assert [record.token for record in hub.requests(kind="manifest")] == ["expired", "valid"]
    assert hub.count(kind="token") == 1
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    assert hub.count(kind="token") == 1


@pytest.mark.parametrize("is_known", [False, True])
async def test_new_token_that_is_refused_once_is_replaced(hub: Hub, line: UpstreamSetup, is_known: bool) -> None:
    """Some machines of a registry may not know the token yet."""
    if is_known:
        await line.upstream.head_manifest(REPO, "stable", ACCEPT)
        hub.accounts.revoke()
    hub.reset_log()
    headers = {"WWW-Authenticate": f'Bearer realm="{hub.realm}",service="{hub.service}",error="invalid_token"'}
    hub.faults.add(Fault(kind="manifest", status=401, headers=headers, after=1, times=1))
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    assert (hub.count(kind="manifest"), hub.count(kind="token")) == (3, 2)


async def test_new_realm_of_a_registry_is_used(hub: Hub, line: UpstreamSetup) -> None:
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    old = await line.upstream.challenge()
    with Hub() as other:
        other.accounts = hub.accounts
        other.image("library/new", "stable", [LAYER])
        hub.image("library/new", "stable", [LAYER])
        hub.stop("token")
        hub.realm = other.realm
        await line.upstream.head_manifest("library/new", "stable", ACCEPT)
        assert old is not None
        assert [challenge.realm for challenge in line.learned] == [old.realm, other.realm]


async def test_registry_is_pinged_rarely_while_its_token_service_fails(hub: Hub, line: UpstreamSetup) -> None:
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    hub.stop("token")
    hub.reset_log()
    for number in range(5):
        with pytest.raises(Unavailable, match="token service cannot be reached"):
            await line.upstream.head_manifest(f"library/n{number}", "stable", ACCEPT)
    assert [record.kind for record in hub.log] == ["ping"]


async def test_no_token_is_fetched_while_offline(hub: Hub, line: UpstreamSetup) -> None:
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    hub.reset_log()
    line.client.offline = True
    with pytest.raises(Unavailable, match=r"^offline"):
        await line.upstream.head_manifest("library/other", "stable", ACCEPT)
    assert hub.count() == 0


async def test_token_about_to_expire_is_replaced_before_it_is_used(
    hub: Hub, line: UpstreamSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    hub.reset_log()
    ahead = time.monotonic() + 290
    monkeypatch.setattr(line.tokens, "_clock", lambda: ahead)
    await line.upstream.head_manifest(REPO, "stable", ACCEPT)
    assert [record.token for record in hub.requests(kind="manifest")] == ["valid"]
    assert hub.count(kind="token") == 1


async def test_registry_without_authentication_is_read_without_tokens(hub: Hub, line: UpstreamSetup) -> None:
    hub.auth = False
    assert await read_blob(line) == LAYER
    assert await line.upstream.challenge() is None
    assert await line.upstream.anonymous_authorization(REPO) is None
    assert hub.count(kind="token") == 0


async def test_challenge_of_the_ping_is_remembered(hub: Hub, line: UpstreamSetup) -> None:
    first = await line.upstream.challenge()
    assert first is not None
    assert (first.realm, first.service) == (hub.realm, hub.service)
    assert await line.upstream.challenge() == first
    assert hub.count(kind="ping") == 1
    assert line.learned == [first]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_failed_ping_does_not_mean_that_no_token_is_needed(hub: Hub, line: UpstreamSetup, status: int) -> None:
    fault = hub.faults.add(Fault(kind="ping", status=status))
    with pytest.raises(TooManyRequests if status == 429 else Unavailable):
        await line.upstream.challenge()
    assert line.upstream.other_challenge is None
    hub.faults.remove(fault)
    assert await line.upstream.challenge() is not None


async def test_challenge_of_a_redirect_target_is_ignored(hub: Hub, line: UpstreamSetup) -> None:
    """Otherwise a CDN could make the cache send passwords to a realm of its choice."""
    evil = {"WWW-Authenticate": 'Bearer realm="http://evil.example/token",service="x"'}
    hub.faults.add(Fault(kind="cdn", status=401, headers=evil))
    with pytest.raises(RegistryError):
        await read_blob(line)
    assert [challenge.realm for challenge in line.learned if "evil" in challenge.realm] == []


async def test_bearer_challenge_is_used_beside_a_basic_one() -> None:
    """RFC 9110 section 11.6.1: several challenges in several headers, in any order."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.json_response({"token": "x"})
        if request.headers.get("Authorization") == "Bearer x":
            return web.Response(body=b"{}")
        response = web.Response(status=401)
        response.headers.add("WWW-Authenticate", 'Basic realm="people"')
        response.headers.add("WWW-Authenticate", f'Bearer realm="http://{request.host}/token",service="s"')
        return response

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with Hub() as unused:
        async with upstream_to(unused, f"http://127.0.0.1:{runner.addresses[0][1]}") as line:
            assert (await line.upstream.get_manifest(REPO, "stable", ACCEPT)).body == b"{}"
    await runner.cleanup()


async def test_malformed_realm_is_a_registry_error(hub: Hub, line: UpstreamSetup) -> None:
    for realm in ("nonsense", "ftp://x/token", "http://[", "http://a:99999/"):
        hub.realm = realm
        with pytest.raises(RegistryError):
            await line.upstream.get_manifest(REPO, "stable", ACCEPT)


async def test_token_service_that_answers_html_is_unavailable(hub: Hub, line: UpstreamSetup) -> None:
    hub.faults.add(Fault(kind="token", status=200, body="<html>"))
    with pytest.raises(Unavailable):
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)


@pytest.mark.parametrize(
    ("upstream", "realm", "same"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.io/token", True),
        ("https://ghcr.io", "https://ghcr.io/token", True),
        ("https://registry-1.docker.io", "https://auth.docker.io.evil.example/token", False),
        ("https://registry-1.docker.io", "https://evil-docker.io/token", False),
        ("https://registry-1.docker.io", "https://evil.example/docker.io", False),
        ("https://registry-1.docker.io", "https://docker.io@evil.example/token", False),
        ("https://registry-1.docker.io", "http://auth.docker.io/token", False),
        ("https://registry.one.co.uk", "https://auth.two.co.uk/token", False),
        ("https://one.github.io", "https://two.github.io/token", False),
        ("https://10.0.0.1", "https://192.168.0.1/token", False),
        ("https://10.0.0.1:5000", "https://10.0.0.1:5001/token", True),
        ("https://[2001:db8::1]", "https://[2001:db8::2]/token", False),
        ("http://localhost:5000", "http://localhost:5001/token", True),
        ("https://registry", "https://auth/token", False),
    ],
)
def test_password_may_be_sent_to_a_realm_in_the_registrys_domain_only(upstream: str, realm: str, same: bool) -> None:
    assert may_receive_password(upstream, realm) is same


async def test_accounts_password_is_not_sent_to_a_realm_in_another_domain(hub: Hub) -> None:
    hub.image(REPO, "stable", [LAYER])
    hub.user("alice", "secret")
    hub.realm = hub.realm.replace("localhost", "127.0.0.1")
    async with upstream_to(hub, account=Account("alice", "secret")) as line:
        assert await line.upstream.account_authorization(REPO) is None
        await line.upstream.get_manifest(REPO, "stable", ACCEPT)
    assert {record.authorization for record in hub.requests(kind="token")} <= {None}


async def test_account_reads_with_a_token_of_a_realm_in_the_registrys_domain(hub: Hub) -> None:
    hub.image(REPO, "stable", [LAYER])
    hub.private(REPO, {"alice": "secret"})
    async with upstream_to(hub, account=Account("alice", "secret")) as line:
        reader = await line.upstream.account_authorization(REPO)
        fetched = await line.upstream.get_manifest(REPO, "stable", ACCEPT, reader)
        assert fetched.digest.hex == hashlib.sha256(fetched.body).hexdigest()
        with pytest.raises(Unauthorized):
            await line.upstream.get_manifest(REPO, "stable", ACCEPT)
