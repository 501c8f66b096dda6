"""Registries that clients name: each has separate content and tokens, and none leads to an address of this machine or
its link."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hubcache.decide.outbound_proxy import OutboundProxies, OutboundProxy
from hubcache.engine import Engine
from hubcache.oci.registry import Registry
from hubcache.oci.registry_pattern import RegistryPattern, registry_named
from hubcache.serve.messages import Answer, Listener, Request
from hubcache.store.fact_rows import FACT_LIFETIME
from hubcache.transfer import upstreams
from support import network
from support.engine import ACCEPT, SETUP, Cache, read, settings
from support.standin import Fault, Hub, random_bytes
from support.users import until
from yarl import URL

ONE, TWO = "one.example.org", "two.example.net"
LAYER = random_bytes(100_000, "layer")
REPO = "team/app"
ANY = RegistryPattern.parse("*")


def with_public_names(hub: Hub, host: str) -> None:
    """Let the registry name its token service and its CDN by public host names."""
    hub.realm, hub.cdn_host = f"https://auth.{host}:{hub.ports['token']}/token", f"cdn.{host}"


@pytest.fixture
def names() -> dict[str, str]:
    """Addresses by host name, for the resolver of these tests."""
    hosts = (ONE, TWO)
    return {f"{part}{host}": network.PUBLIC for host in hosts for part in ("", "auth.", "cdn.")}


@pytest.fixture
def hubs(names: dict[str, str]) -> Iterator[tuple[Hub, Hub]]:
    """Two registries with certificates for their names."""
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(Hub(tls=True, names=[each for each in names if each.endswith(host)]))
            for host in (ONE, TWO)
        )
        with_public_names(one, ONE)
        with_public_names(two, TWO)
        yield one, two


@pytest.fixture
async def cache(
    hub: Hub, hubs: tuple[Hub, Hub], names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cache]:
    """A cache of Docker Hub and of any registry that a client names."""
    network.install(monkeypatch, names)
    tls = ssl.create_default_context()
    for each in hubs:
        tls.load_verify_locations(each.ca_file)
    chosen = settings(hub, tmp_path / "store", registry_patterns=(ANY,))
    engine = await Engine.start(chosen, tls, SETUP)
    yield Cache(engine, chosen)
    await engine.close()


def named(hub: Hub, host: str = ONE) -> Registry:
    """Return the registry as a client names it."""
    registry = registry_named(f"{host}:{hub.ports['registry']}")
    assert registry is not None
    assert ANY.matches(registry.hostname, registry.port)
    return registry


def request(registry: Registry, path: str, listener: Listener = Listener.MIRROR, **headers: str) -> Request:
    path, _, query = path.partition("?")
    return Request("GET", path, registry, listener, {"accept": ACCEPT} | headers, query)


async def get(cache: Cache, registry: Registry, path: str, **headers: str) -> tuple[int, bytes]:
    """Return status and body of a request at the mirror."""
    outcome = await cache.engine.answer(request(registry, path, **headers))
    assert isinstance(outcome, Answer)
    return outcome.status, await read(outcome)


async def test_named_registry_is_pulled_once_with_its_own_tokens_and_cdn(cache: Cache, hubs: tuple[Hub, Hub]) -> None:
    hub, registry = hubs[0], named(hubs[0])
    image = hub.image(REPO, "1", [LAYER])
    for _ in range(2):
        assert await get(cache, registry, f"/v2/{REPO}/manifests/1") == (200, image.manifest)
        assert await get(cache, registry, f"/v2/{REPO}/blobs/{image.layers[0]}") == (200, LAYER)
    assert {hub.count(kind="manifest"), hub.count(kind="token")} <= {1, 2}
    assert hub.count(listener="cdn") == 1
    assert hub.violations == []


async def test_named_registries_have_their_own_content_under_the_same_name(
    cache: Cache, hub: Hub, hubs: tuple[Hub, Hub]
) -> None:
    registries = (cache.settings.registries[0], named(hubs[0], ONE), named(hubs[1], TWO))
    images = [each.image(REPO, "1", [f"{each.ports}".encode()]) for each in (hub, *hubs)]
    for registry, image in zip(registries, images, strict=True):
        assert await get(cache, registry, f"/v2/{REPO}/manifests/1") == (200, image.manifest)
    other = images[2].layers[0]
    assert (await get(cache, registries[1], f"/v2/{REPO}/blobs/{other}"))[0] == 404


async def test_outage_of_one_registry_stops_no_other_one(cache: Cache, hubs: tuple[Hub, Hub]) -> None:
    one, two = named(hubs[0], ONE), named(hubs[1], TWO)
    for hub in hubs:
        hub.image(REPO, "stored")
    await get(cache, one, f"/v2/{REPO}/manifests/stored")
    hubs[0].stop()
    for _ in range(3):
        assert (await get(cache, one, f"/v2/{REPO}/manifests/other"))[0] == 503
    assert not cache.engine._upstreams[one.host].is_reachable
    assert (await get(cache, one, f"/v2/{REPO}/manifests/stored"))[0] == 200
    assert cache.engine._upstreams.get(two.host) is None
    assert (await get(cache, two, f"/v2/{REPO}/manifests/stored"))[0] == 200


async def test_private_image_of_a_named_registry_is_not_given_to_others(cache: Cache, hubs: tuple[Hub, Hub]) -> None:
    hubs[0].image(REPO, "1")
    hubs[0].private(REPO, {"alice": "secret"})
    assert (await get(cache, named(hubs[0]), f"/v2/{REPO}/manifests/1"))[0] == 404
    outcome = await cache.engine.answer(request(named(hubs[0]), f"/v2/{REPO}/manifests/1", Listener.PROXY))
    assert isinstance(outcome, Answer)
    assert outcome.status == 401
    assert f'realm="https://{named(hubs[0]).host}/.hubcache/token"' in outcome.headers["WWW-Authenticate"]


# -- addresses of this machine and its link


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "0.0.0.0", "fe80::1", "::ffff:127.0.0.1"])
async def test_named_registry_at_a_local_address_is_refused(
    cache: Cache, hubs: tuple[Hub, Hub], names: dict[str, str], address: str
) -> None:
    hubs[0].image(REPO, "1")
    names[ONE] = address
    for path in (f"/v2/{REPO}/manifests/1", f"/v2/{REPO}/blobs/sha256:{'0' * 64}", f"/v2/{REPO}/manifests/2"):
        status, body = await get(cache, named(hubs[0]), path)
        assert status == 502
        assert b"an address of this machine or its link" in body
    assert hubs[0].log == []
    assert cache.engine._upstreams[named(hubs[0]).host].is_reachable, "no failure of the registry"


async def test_name_that_resolves_to_loopback_later_is_refused(
    cache: Cache, hubs: tuple[Hub, Hub], names: dict[str, str]
) -> None:
    hub = hubs[0]
    hub.image(REPO, "1")
    hub.image(REPO, "2")
    assert (await get(cache, named(hub), f"/v2/{REPO}/manifests/1"))[0] == 200
    hub.stop("registry")  # closes the connections that the cache keeps
    hub.start()
    names[ONE] = "127.0.0.1"
    cache.engine._clients._named.connector._cached_hosts.clear()  # type: ignore[union-attr]  # else the name is kept for 10 s
    hub.reset_log()
    assert (await get(cache, named(hub), f"/v2/{REPO}/manifests/2"))[0] == 502
    assert hub.count(listener="registry") == 0


@pytest.mark.parametrize("part", ["auth.", "cdn."])
async def test_named_registry_leads_to_no_local_address(
    cache: Cache, hubs: tuple[Hub, Hub], names: dict[str, str], part: str
) -> None:
    hub = hubs[0]
    image = hub.image(REPO, "1", [LAYER])
    names[part + ONE] = "127.0.0.1"
    statuses = [
        (await get(cache, named(hub), f"/v2/{REPO}/{what}"))[0] for what in ("manifests/1", f"blobs/{image.layers[0]}")
    ]
    assert statuses[1] == 502
    assert hub.count(listener={"auth.": "token", "cdn.": "cdn"}[part]) == 0


async def test_token_requests_of_clients_do_not_reach_loopback(
    cache: Cache, hubs: tuple[Hub, Hub], names: dict[str, str]
) -> None:
    """The realm is at the registry's own host, which resolves to loopback once the challenge is known."""
    hub = hubs[0]
    hub.image(REPO, "1")
    hub.realm = f"https://{named(hub).host}/token"
    await get(cache, named(hub), f"/v2/{REPO}/manifests/1")
    names[ONE] = "127.0.0.1"
    hub.stop("registry")
    hub.start()
    cache.engine._clients._named.connector._cached_hosts.clear()  # type: ignore[union-attr]
    hub.reset_log()
    outcome = await cache.engine.answer(
        request(named(hub), "/.hubcache/token?service=x", Listener.PROXY, authorization="Basic YTpi")
    )
    assert isinstance(outcome, Answer)
    assert outcome.status == 502
    assert hub.log == []


async def test_configured_registry_may_be_at_loopback(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1")
    assert await get(cache, cache.settings.registries[0], f"/v2/{REPO}/manifests/1") == (200, image.manifest)


async def test_names_whose_lookup_takes_long_delay_no_configured_registry(
    cache: Cache, hub: Hub, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its redirects, which are looked up as well, nor the threads in which the store writes."""
    lookup, answered, waiting = socket.getaddrinfo, threading.Event(), list[str]()

    def slow(host: object, *more: Any, **fields: Any) -> Any:
        if "slow" in str(host):
            waiting.append(str(host))
            answered.wait(20)
        return lookup(host, *more, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    slow_ones = [registry_named(f"slow{number}.example.org") for number in range(64)]
    tasks = [asyncio.create_task(get(cache, each, f"/v2/{REPO}/manifests/1")) for each in slow_ones if each is not None]
    await until(lambda: len(waiting) >= 8)
    hub.cdn_host = "localhost"
    image = hub.image(REPO, "1", [LAYER])
    async with asyncio.timeout(5):
        assert (await get(cache, cache.settings.registries[0], f"/v2/{REPO}/blobs/{image.layers[0]}"))[1] == LAYER
        await asyncio.to_thread(int)
    answered.set()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_stored_content_of_a_named_registry_is_served_after_a_restart_without_it(
    cache: Cache, hubs: tuple[Hub, Hub], hub: Hub
) -> None:
    registry, image = named(hubs[0]), hubs[0].image(REPO, "1", [LAYER])
    for path in (f"/v2/{REPO}/manifests/1", f"/v2/{REPO}/blobs/{image.layers[0]}"):
        assert (await get(cache, registry, path))[0] == 200
    await cache.engine.close()
    hubs[0].stop()
    for offline in (False, True):
        again = await Engine.start(replace(cache.settings, offline=offline), ssl.create_default_context(), SETUP)
        try:
            restarted = Cache(again, cache.settings)
            assert await get(restarted, registry, f"/v2/{REPO}/manifests/1") == (200, image.manifest)
            assert await get(restarted, registry, f"/v2/{REPO}/blobs/{image.layers[0]}") == (200, LAYER)
            assert (await get(restarted, registry, f"/v2/{REPO}/manifests/2"))[0] == 503
        finally:
            await again.close()


async def test_outbound_proxy_may_be_at_a_local_address(cache: Cache, hubs: tuple[Hub, Hub]) -> None:
    """The cache connects to the proxy, and the proxy resolves the registry's name."""
    url, client = URL(named(hubs[0]).upstream), cache.engine._clients._guarded_client
    assert await client._session(url, url) is cache.engine._clients._named
    proxy = OutboundProxies.all_through(OutboundProxy("http", "127.0.0.1", 3128))
    cache.engine.use_proxies(proxy)
    assert await client._session(url, url) is cache.engine._clients._http


# -- bounds


async def test_least_recently_used_registry_is_forgotten(
    cache: Cache, hubs: tuple[Hub, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstreams, "MAX_NAMED", 2)
    named_ones = [registry_named(f"r{number}.example.org") for number in range(3)]
    for number in (0, 1, 0, 2):
        registry = named_ones[number]
        assert registry is not None
        await get(cache, registry, "/v2/")
    hosts = {"registry-1.docker.io", "r0.example.org", "r2.example.org"}
    assert set(cache.engine._upstreams) == set(cache.engine._tag_refresh.upstreams) == hosts


async def test_stored_challenge_of_a_named_registry_expires(cache: Cache, hub: Hub, hubs: tuple[Hub, Hub]) -> None:
    """Clients can name any number of registries, each of which would leave a row."""
    store, configured, by_client = cache.engine.store, cache.settings.registries[0], named(hubs[0])
    for each, registry in ((hub, configured), (hubs[0], by_client)):
        each.image(REPO, "1", [LAYER])
        await get(cache, registry, f"/v2/{REPO}/manifests/1")
    await until(lambda: all(store.registries.challenge(each.host) for each in (configured, by_client)))
    expiring = {key for key, _ in store.index.opened().expiring(FACT_LIFETIME + 60) if key.startswith("challenge/")}
    assert expiring == {f"challenge/{by_client.host}"}


async def test_registry_is_refused_while_all_others_have_requests(
    cache: Cache, hub: Hub, hubs: tuple[Hub, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstreams, "MAX_NAMED", 1)
    one, two = named(hubs[0], ONE), named(hubs[1], TWO)
    for each in (hub, *hubs):
        each.image(REPO, "1")
    stuck = hubs[0].faults.add(Fault(kind="manifest", delay=60))
    waiting = asyncio.create_task(get(cache, one, f"/v2/{REPO}/manifests/1"))
    await until(lambda: hubs[0].count(kind="manifest") > 0)
    status, body = await get(cache, two, f"/v2/{REPO}/manifests/1")
    assert status == 503
    assert b"try again later" in body
    assert (await get(cache, cache.settings.registries[0], f"/v2/{REPO}/manifests/1"))[0] == 200
    hubs[0].faults.remove(stuck)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await get(cache, two, f"/v2/{REPO}/manifests/1"))[0] == 200


async def test_registry_is_forgotten_when_its_pattern_is_removed(cache: Cache, hubs: tuple[Hub, Hub]) -> None:
    await get(cache, named(hubs[0]), "/v2/")
    cache.apply(registry_patterns=())
    assert set(cache.engine._upstreams) == {"registry-1.docker.io"}
    hubs[0].reset_log()
    assert (await get(cache, named(hubs[0]), f"/v2/{REPO}/manifests/1"))[0] == 404
    assert hubs[0].log == []


async def test_registry_that_is_removed_from_the_options_loses_its_configured_upstream(
    cache: Cache, hub: Hub, hubs: tuple[Hub, Hub]
) -> None:
    """Otherwise a client could still read from an address that is no longer configured."""
    other = Registry.parse(f"{named(hubs[0]).host}={hub.url()}")
    hub.image(REPO, "1", [b"of the address that was configured"])
    image = hubs[0].image(REPO, "2")
    cache.apply(registries=(cache.settings.registries[0], other))
    assert (await get(cache, other, f"/v2/{REPO}/manifests/1"))[0] == 200
    cache.apply(registries=cache.settings.registries[:1])
    assert await get(cache, named(hubs[0]), f"/v2/{REPO}/manifests/2") == (200, image.manifest)


async def test_tags_of_a_named_registry_are_refreshed(cache: Cache, hubs: tuple[Hub, Hub]) -> None:
    hubs[0].image(REPO, "1")
    cache.apply(sync=True, tag_ttl=600.0)
    await get(cache, named(hubs[0]), f"/v2/{REPO}/manifests/1")
    assert cache.engine._tag_refresh.upstreams[named(hubs[0]).host] is cache.engine._upstreams[named(hubs[0]).host]
