"""Connections to upstreams: surplus bytes, stale kept connections, and refused local addresses."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest
from hubcache.oci.errors import BadUpstream, Unavailable
from hubcache.transfer import breaker
from hubcache.transfer import connector as connector_module
from hubcache.transfer.breaker import CircuitBreakers
from hubcache.transfer.session import open_download_session, open_session
from hubcache.transfer.upstream_client import UpstreamClient
from support.served import answering
from support.standin import Fault, Hub
from support.upstreams import RecordingObserver, UpstreamSetup, upstream_to
from support.users import until
from yarl import URL

REPO = "library/debian"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session(ssl.create_default_context(), "hubcache-test") as opened:
        yield opened


# -- bytes after an answer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "answer", "expected"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdefgh", (200, b"abc")),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\r\n\r\n", (200, b"abc")),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\r\n\r\nabc", (200, b"\r\n\r\n")),
        ("GET", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n<html>", (404, b"")),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\nbody", (304, b"")),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", (200, b"")),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nmore", (200, b"abc")),
    ],
)
async def test_bytes_after_a_response_are_ignored(
    session: aiohttp.ClientSession, method: str, answer: bytes, expected: tuple[int, bytes]
) -> None:
    async with answering(answer) as url:
        for _ in range(3):
            async with session.request(method, url) as response:
                assert (response.status, await response.read()) == expected


async def test_unrequested_response_is_not_used_for_the_next_request(session: aiohttp.ClientSession) -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine"
    async with answering(one + one.replace(b"mine", b"evil")) as url:
        for _ in range(4):
            async with session.get(url) as response:
                assert await response.read() == b"mine"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/9\r\n\r\n", b"\r\n\r\nno"])
async def test_malformed_response_is_a_client_error(session: aiohttp.ClientSession, answer: bytes) -> None:
    async with answering(answer) as url:
        with pytest.raises(aiohttp.ClientError):
            await session.get(url)


# -- kept connections ------------------------------------------------------------------------------------------------


@pytest.fixture
async def line(hub: Hub) -> AsyncIterator[UpstreamSetup]:
    hub.image(REPO, "stable")
    async with upstream_to(hub) as opened:
        yield opened


async def get(line: UpstreamSetup, hub: Hub, method: str = "GET", body: bytes | None = None) -> int:
    async with line.client.send("ping", method, URL(f"{hub.url()}/v2/"), {}, body, named_by=URL(hub.url())) as response:
        await response.read()
        return response.status


async def test_requests_on_stale_connections_are_repeated(hub: Hub, line: UpstreamSetup) -> None:
    """One or several stale connections are kept."""
    hub.auth = False
    hub.faults.add(Fault(kind="ping", delay=0.05))
    assert await asyncio.gather(*(get(line, hub) for _ in range(12))) == [200] * 12
    hub.single_use = True
    for _ in range(5):
        assert await get(line, hub) == 200
    assert [status for _, status in line.seen.answers] == ["200"] * 17


async def test_token_request_on_a_stale_connection_is_repeated(hub: Hub, line: UpstreamSetup) -> None:
    for hub.single_use in (False, True):
        async with line.client.send(
            "token", "POST", URL(hub.realm), {}, b"grant_type=password", named_by=URL(hub.url())
        ) as response:
            await response.read()
            assert response.status == 200


async def test_unsafe_request_on_a_stale_connection_is_not_repeated(hub: Hub, line: UpstreamSetup) -> None:
    hub.auth = False
    await get(line, hub)
    hub.single_use = True
    with pytest.raises(Unavailable):
        await get(line, hub, "POST", b"grant_type=password")


async def test_request_to_a_host_that_closes_connections_is_sent_at_most_twice(hub: Hub, line: UpstreamSetup) -> None:
    fault = hub.faults.add(Fault(kind="ping", reset=True))
    with pytest.raises(Unavailable):
        await get(line, hub)
    assert fault.hits <= 2


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def client() -> AsyncIterator[UpstreamClient]:
    """A client with two sessions, as the engine has it."""
    tls = ssl.create_default_context()
    async with open_session(tls, "t") as http, open_session(tls, "t", guarded=True) as guarded:
        downloads = open_download_session(tls, "t")
        yield UpstreamClient(http, RecordingObserver(), CircuitBreakers(), guarded, downloads)
        downloads.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_guarded_session_connects_to_no_local_address_in_any_spelling(host: str) -> None:
    async with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as url,
        open_session(ssl.create_default_context(), "t", guarded=True) as guarded,
    ):
        with pytest.raises(aiohttp.ClientError):
            await guarded.get(f"http://{host}:{url.port}/")


async def test_name_that_resolves_to_a_local_address_is_refused(
    hub: Hub, client: UpstreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check concerns the address of the connection, against DNS rebinding."""
    resolve(monkeypatch, {"rebound.example": "127.0.0.1", "registry.example": "192.0.2.1"})
    target = URL(hub.url()).with_host("rebound.example")
    with pytest.raises(BadUpstream, match="this machine or its link"):
        await status_of(client, target, named_by=URL("http://registry.example"))
    assert hub.count() == 0


async def test_registry_with_a_local_address_may_name_local_addresses(
    hub: Hub, client: UpstreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, {"registry.test": "127.0.0.1"})
    await status_of(client, URL(hub.url("cdn")), named_by=URL("http://registry.test"))


async def test_registry_whose_name_later_resolves_to_a_local_address_gains_no_access(
    hub: Hub, client: UpstreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in ("192.0.2.1", "127.0.0.1"):
        resolve(monkeypatch, {"registry.example": at})
        with pytest.raises(BadUpstream):
            await status_of(client, URL(hub.url("cdn")), named_by=URL("http://registry.example"))


async def test_refused_address_opens_no_circuit_and_is_not_probed(
    hub: Hub, client: UpstreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, {"registry.example": "192.0.2.1"})
    for _ in range(5):
        with pytest.raises(BadUpstream):
            await status_of(client, URL(hub.url("cdn")), named_by=URL("http://registry.example"))
    assert client.may_contact(URL(hub.url("cdn")))
    assert hub.count() == 0


async def test_host_is_probed_with_the_session_of_the_failed_request(
    hub: Hub, client: UpstreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session may refuse the address, and its probe would always fail."""
    resolve(monkeypatch, {"registry.example": "192.0.2.1"})
    fault = hub.faults.add(Fault(kind="ping", status=500, delay=0.2, times=breaker.THRESHOLD))
    home = URL(hub.url())
    failing = [asyncio.create_task(status_of(client, home / "v2/", home)) for _ in range(breaker.THRESHOLD)]
    await until(lambda: fault.hits == breaker.THRESHOLD)
    with pytest.raises(BadUpstream):
        await status_of(client, home / "v2/", named_by=URL("http://registry.example"))
    assert await asyncio.gather(*failing) == [500] * breaker.THRESHOLD
    await until(lambda: not client._breakers._tasks)
    assert client.may_contact(home)


async def test_probe_after_close_reports_failure(hub: Hub, line: UpstreamSetup) -> None:
    await line.http.close()
    assert await line.client._probe(line.http, URL(hub.url()))() is False


async def test_registrys_own_origin_may_be_local(hub: Hub, client: UpstreamClient) -> None:
    await status_of(client, URL(hub.url()), named_by=URL(hub.url()))
    assert hub.count() == 1


async def status_of(client: UpstreamClient, url: URL, named_by: URL) -> int:
    async with client.send("blob", "GET", url, {}, named_by=named_by) as response:
        return response.status


def resolve(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    """Resolve these names to these addresses, and others as usual."""
    real = socket.getaddrinfo

    def getaddrinfo(host: object, *more: object, **fields: object) -> object:
        return real(names.get(str(host), host), *more, **fields)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_refused_address_is_recognized_by_its_error_text() -> None:
    with pytest.raises(OSError, match=connector_module.REFUSED_ADDRESS):
        connector_module._guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80)))
