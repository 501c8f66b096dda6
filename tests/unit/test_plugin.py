"""mitmproxy's hooks: options and defaults, what becomes of a flow, and that nothing is left behind of it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache import plugin
from hubcache.engine import Engine
from hubcache.oci.digest import Digest
from hubcache.oci.registry import HUB_HOST
from hubcache.plugin import Hubcache
from hubcache.serve.messages import Answer, Result
from mitmproxy import exceptions
from mitmproxy.addons.modifyheaders import ModifyHeaders
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.http import HTTPFlow, Response
from mitmproxy.proxy.mode_specs import ProxyMode
from support.mitm import taddons, tflow
from support.standin import Fault, Hub, random_bytes
from support.users import until

REPO = "library/app"


class Harness:
    """The addon in a mitmproxy that listens nowhere, and flows by hand."""

    def __init__(self, context: taddons.context, addon: Hubcache) -> None:
        self.context = context
        self.addon = addon

    async def request(
        self, method: str, path: str, door: str = "mirror", host: str = HUB_HOST, **headers: str
    ) -> HTTPFlow:
        """A flow after its request's head came in."""
        flow = tflow.tflow()
        mode = f"reverse:https://{HUB_HOST}@5000" if door == "mirror" else "regular"
        flow.client_conn.proxy_mode = ProxyMode.parse(mode)
        flow.request.url = f"https://{host}{path}"
        flow.request.method = method
        flow.request.headers.clear()
        for name, value in headers.items():
            flow.request.headers[name.replace("_", "-")] = value
        await self.addon.requestheaders(flow)
        return flow

    async def body(self, flow: HTTPFlow) -> bytes:
        """What the client would get: fetched from the body listener as mitmproxy does it."""
        reader, writer = await asyncio.open_connection(flow.request.host, flow.request.port)
        writer.write(f"GET {flow.request.path} HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        flow.response = Response.make(200)
        self.addon.responseheaders(flow)
        assert flow.response is not None
        take: Any = flow.response.stream
        parts = []
        while (line := await reader.readline()) not in (b"0\r\n", b""):
            parts.append(take((await reader.readexactly(int(line, 16) + 2))[:-2]))
        writer.close()
        await writer.wait_closed()
        take(b"")
        self.addon.response(flow)
        return b"".join(parts)


@pytest.fixture
async def harness(hub: Hub, tmp_path: Path) -> AsyncIterator[Harness]:
    addon = Hubcache()
    with taddons.context(Proxyserver(), NextLayer(), TlsConfig(), ModifyHeaders(), addon) as context:
        context.options.update(
            confdir=str(tmp_path / "ca"),
            hubcache_dir=str(tmp_path / "store"),
            hubcache_registries=[f"{HUB_HOST}={hub.url()}"],
            hubcache_status="",
            server=False,  # no ports of this machine
        )
        await addon.running()
        yield Harness(context, addon)
        await addon.done()


async def test_defaults_that_a_registry_cache_needs_are_set(harness: Harness) -> None:
    options = harness.context.options
    assert options.connection_strategy == "lazy"
    assert not options.upstream_cert
    assert not options.http2
    assert options.mode == ["regular@8080", f"reverse:https://{HUB_HOST}@5000"]
    assert len(options.allow_hosts) == 3


async def test_index_of_the_hub_is_the_hub_and_keeps_what_only_it_has(harness: Harness, hub: Hub) -> None:
    """`docker search` asks it for `/v1/search`, which the registry does not have."""
    image = hub.image(REPO, "1")
    pulled = await harness.request("GET", f"/v2/{REPO}/manifests/1", "proxy", "index.docker.io", Accept="*/*")
    assert pulled.response is not None
    assert pulled.response.content == image.manifest
    searched = await harness.request("GET", "/v1/search?q=app", "proxy", "index.docker.io", Authorization="Basic eA==")
    assert searched.response is None
    assert (searched.request.host, searched.request.port) == ("index.docker.io", 443)
    assert searched.request.stream is True
    pushed = await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy", "index.docker.io")
    assert f"http://{pushed.request.host}:{pushed.request.port}" == hub.url()


async def test_client_is_known_to_have_asked_while_its_answer_is_thought_about(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its connection would count as one that waits for its client, and its time for a request would go on."""
    guard = harness.addon._connections.guard
    asked: list[HTTPFlow] = []
    monkeypatch.setattr(guard, "asked", asked.append)

    async def answer(_: Any) -> Any:
        assert len(asked) == 1
        return Answer(200, {}, Result.HIT)

    monkeypatch.setattr(harness.addon._engine, "answer", answer)
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert flow.response is not None
    assert asked == [flow]


async def test_values_of_the_user_are_kept(hub: Hub, tmp_path: Path) -> None:
    addon = Hubcache()
    with taddons.context(Proxyserver(), NextLayer(), TlsConfig()) as context:
        context.options.update(connection_strategy="eager", mode=["regular@1234"], allow_hosts=["example"])
        context.options.update(confdir=str(tmp_path / "ca"))
        # "eager" and others are mitmproxy's own defaults: only what differs from them can be told from "not set".
        context.master.addons.add(addon)
        assert context.options.mode == ["regular@1234"]
        assert context.options.allow_hosts == ["example"]


@pytest.mark.parametrize(
    "change",
    [
        {"hubcache_size": "lots"},
        {"hubcache_tag_ttl": "-5"},
        {"hubcache_registries": ["ghcr.io"]},
        {"hubcache_dir": "/elsewhere"},
        {"hubcache_status": "127.0.0.1:9181"},
        {"mode": ["reverse:https://quay.io@5000"]},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_change_that_is_refused_while_running_leaves_all_as_it_was(
    harness: Harness, hub: Hub, change: dict[str, Any]
) -> None:
    before = {name: getattr(harness.context.options, name) for name in change}
    with pytest.raises(exceptions.OptionsError):
        harness.context.options.update(**change)
    assert {name: getattr(harness.context.options, name) for name in change} == before
    image = hub.image(REPO, "1")
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert flow.response is not None
    assert flow.response.content == image.manifest


async def test_change_while_running_counts_at_once(harness: Harness, hub: Hub) -> None:
    hub.image(REPO, "1")
    await harness.request("GET", f"/v2/{REPO}/manifests/1")
    harness.context.options.update(hubcache_tag_ttl="0")
    hub.reset_log()
    await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert {record.method for record in hub.requests(kind="manifest")} == {"HEAD"}


async def test_answer_from_memory_becomes_the_flows_response(harness: Harness, hub: Hub) -> None:
    image = hub.image(REPO, "1")
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert flow.response is not None
    assert (flow.response.status_code, flow.response.content) == (200, image.manifest)
    assert flow.marked == ":arrow_down:"
    assert flow.comment.startswith("hubcache; fwd=uri-miss")
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert flow.marked == ":heavy_check_mark:"


async def test_body_comes_from_the_body_listener_and_the_flow_shows_the_registry(harness: Harness, hub: Hub) -> None:
    data = random_bytes(1_500_000)
    digest = hub.blob(REPO, data)
    for _ in range(2):
        flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}")
        assert flow.response is None
        assert flow.request.host == "127.0.0.1"
        assert await harness.body(flow) == data
        assert flow.response is not None
        assert (flow.response.status_code, flow.response.headers["Content-Length"]) == (200, str(len(data)))
        assert flow.request.url == f"https://{HUB_HOST}/v2/{REPO}/blobs/{digest}"
    assert harness.addon._deliveries == {}


async def test_part_of_a_body_has_its_own_status(harness: Harness, hub: Hub) -> None:
    data = random_bytes(1_500_000)
    digest = hub.blob(REPO, data)
    flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}", Range="bytes=2-99999")
    assert await harness.body(flow) == data[2:100_000]
    assert flow.response is not None
    assert (flow.response.status_code, flow.response.reason) == (206, "Partial Content")


async def stored(harness: Harness, hub: Hub, data: bytes) -> tuple[str, Digest, Engine]:
    """The path of a blob that is in the store."""
    digest = Digest.parse(hub.blob(REPO, data))
    engine = harness.addon._engine
    assert isinstance(engine, Engine)
    flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}")
    if flow.response is None:
        await harness.body(flow)
    await until(lambda: engine.store.has(digest) and not engine.store.usage.in_use[digest])
    return f"/v2/{REPO}/blobs/{digest}", digest, engine


@pytest.mark.parametrize("size", [1, 65_536])
@pytest.mark.parametrize("door", ["proxy", "mirror"])
async def test_small_stored_body_needs_no_body_listener(harness: Harness, hub: Hub, door: str, size: int) -> None:
    data = random_bytes(size)
    path, digest, engine = await stored(harness, hub, data)
    before = engine.metrics.registry.get_sample_value("hubcache_sent_bytes_total", {"source": "store"}) or 0
    flow = await harness.request("GET", path, door)
    assert flow.response is not None
    assert (flow.response.content, flow.response.headers["Content-Length"]) == (data, str(size))
    part = await harness.request("GET", path, door, Range="bytes=0-0")
    assert part.response is not None
    assert (part.response.status_code, part.response.content) == (206, data[:1])
    after = engine.metrics.registry.get_sample_value("hubcache_sent_bytes_total", {"source": "store"})
    assert after == before + size + 1
    assert not engine.store.usage.in_use[digest]


@pytest.mark.parametrize(("size", "headers"), [(65_537, {}), (100, {"Authorization": "Bearer own"})])
async def test_body_that_is_big_or_asked_for_with_credentials_stays_in_no_flow(
    harness: Harness, hub: Hub, size: int, headers: dict[str, str]
) -> None:
    data = random_bytes(size)
    path, _, _ = await stored(harness, hub, data)
    flow = await harness.request("GET", path, "proxy", **headers)
    assert (flow.comment, flow.response) == ("hubcache; hit", None)
    assert await harness.body(flow) == data


async def test_client_that_leaves_gives_the_stored_file_back(harness: Harness, hub: Hub) -> None:
    digest = hub.blob(REPO, random_bytes(100_000))
    await harness.body(await harness.request("GET", f"/v2/{REPO}/blobs/{digest}"))
    assert harness.addon._engine is not None
    store = harness.addon._engine.store
    await until(lambda: store.has(Digest.parse(digest)) and not store.usage.in_use)
    flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}")
    assert store.usage.in_use
    await harness.addon.error(flow)
    assert not store.usage.in_use
    assert harness.addon._deliveries == {}


async def test_client_that_leaves_while_its_body_is_read_causes_no_request(harness: Harness, hub: Hub) -> None:
    """Not even a second fetch of the blob that the body listener's reader misses."""
    data = random_bytes(100_000)
    digest = hub.blob(REPO, data)
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=0))
    flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}")
    reader, writer = await asyncio.open_connection(flow.request.host, flow.request.port)
    writer.write(f"GET {flow.request.path} HTTP/1.1\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await harness.addon.error(flow)
    hub.faults.remove(fault)
    engine = harness.addon._engine
    assert engine is not None
    await until(lambda: not engine.fills._tasks)
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()
    assert hub.count(kind="cdn", method="GET") == 1


async def test_push_is_pointed_at_the_upstream_and_streams(harness: Harness, hub: Hub) -> None:
    flow = await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy", Authorization="Bearer own")
    assert (flow.request.scheme, flow.request.host, flow.request.port) == ("http", "localhost", hub.ports["registry"])
    assert flow.request.stream is True
    assert b"Authorization: Bearer own" in bytes(flow.request.headers)
    assert "own" not in str(dict(flow.request.headers))
    assert flow.marked == ":key:"


@pytest.mark.parametrize(("status", "asked_again"), [(201, True), (401, False)])
async def test_accepted_push_ends_what_is_remembered_of_the_tag(
    harness: Harness, hub: Hub, status: int, asked_again: bool
) -> None:
    hub.image(REPO, "1")
    await harness.request("GET", f"/v2/{REPO}/manifests/1")
    flow = await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy", Authorization="Bearer own")
    flow.response = Response.make(status)
    forgetting = harness.addon.responseheaders(flow)
    if forgetting is not None:  # mitmproxy awaits it, and then sends the head of the answer to the client
        await forgetting
    hub.reset_log()
    await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert (hub.count() > 0) is asked_again
    assert harness.addon._forwards == {}


async def test_push_that_broke_off_leaves_nothing_behind(harness: Harness, hub: Hub) -> None:
    flow = await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy")
    await harness.addon.error(flow)
    assert harness.addon._forwards == {}


async def test_flow_that_has_its_answer_already_is_left_alone(harness: Harness) -> None:
    """By another addon, or by the user in mitmweb."""
    flow = tflow.tflow(resp=True)
    flow.request.url = f"https://{HUB_HOST}/v2/"
    await harness.addon.requestheaders(flow)
    assert flow.request.url == f"https://{HUB_HOST}/v2/"


async def test_requests_wait_until_the_store_is_open(hub: Hub, tmp_path: Path) -> None:
    addon = Hubcache()
    with taddons.context(Proxyserver(), NextLayer(), TlsConfig(), ModifyHeaders(), addon) as context:
        context.options.update(
            confdir=str(tmp_path / "ca"),
            hubcache_dir=str(tmp_path / "store"),
            hubcache_registries=[f"{HUB_HOST}={hub.url()}"],
            hubcache_status="",
            server=False,  # no ports of this machine
        )
        early = asyncio.create_task(Harness(context, addon).request("GET", "/v2/"))
        await asyncio.sleep(0.05)
        assert not early.done()
        await addon.running()
        flow = await early
        assert flow.response is not None
        assert flow.response.status_code == 200
        await addon.done()


@pytest.mark.parametrize("insecure", [True, False])
async def test_own_connections_are_verified_as_mitmproxys_options_say(
    insecure: bool,
) -> None:
    with taddons.context() as context:
        context.options.update(ssl_insecure=insecure)
        mode = plugin._tls_context().verify_mode
    assert mode is (ssl.CERT_NONE if insecure else ssl.CERT_REQUIRED)
