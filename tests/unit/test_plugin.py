"""mitmproxy's flow hooks: what becomes of a flow, and that nothing is kept after its end."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hubcache.engine import Engine
from hubcache.oci.digest import Digest
from hubcache.oci.registry import HUB_HOST
from hubcache.operate.served_request import ServedRequest
from hubcache.serve.messages import Answer, Result
from mitmproxy.http import HTTPFlow, Response
from support.addon import REPO, AddonHarness, harness_fixture, loaded_addon
from support.mitm import tflow
from support.standin import Fault, Hub, random_bytes
from support.users import until

harness = harness_fixture()


async def test_index_docker_io_is_the_hub_and_its_own_paths_are_passed_through(harness: AddonHarness, hub: Hub) -> None:
    """`docker search` requests `/v1/search` of it, which the registry does not have."""
    image = hub.image(REPO, "1")
    pulled = await harness.request("GET", f"/v2/{REPO}/manifests/1", "proxy", "index.docker.io", Accept="*/*")
    assert pulled.response is not None
    assert pulled.response.content == image.manifest
    searched = await harness.request("GET", "/v1/search?q=app", "proxy", "index.docker.io", Authorization="Basic eA==")
    assert searched.response is None
    assert (searched.request.host, searched.request.port) == ("index.docker.io", 443)
    assert callable(searched.request.stream)
    pushed = await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy", "index.docker.io")
    assert f"http://{pushed.request.host}:{pushed.request.port}" == hub.url()


async def test_client_counts_as_busy_before_its_answer_is_known(
    harness: AddonHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection would count as idle otherwise, and its time limit for a request would go on."""
    received: list[HTTPFlow] = []
    monkeypatch.setattr(harness.addon._access, "request_received", received.append)

    async def answer(_: Any) -> Any:
        assert len(received) == 1
        return Answer(200, {}, Result.HIT)

    monkeypatch.setattr(harness.engine, "answer", answer)
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert flow.response is not None
    assert received == [flow]


async def test_answer_from_memory_becomes_the_flows_response(harness: AddonHarness, hub: Hub) -> None:
    image = hub.image(REPO, "1")
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert flow.response is not None
    assert (flow.response.status_code, flow.response.content) == (200, image.manifest)
    assert flow.marked == ":miss:"
    assert flow.comment == f"miss: from {HUB_HOST} and stored"
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert flow.marked == ":hit:"


async def test_body_listener_sends_the_body_and_the_flow_shows_the_registry(harness: AddonHarness, hub: Hub) -> None:
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
    assert harness.hooks._deliveries == {}


async def test_part_of_a_body_has_its_own_status(harness: AddonHarness, hub: Hub) -> None:
    data = random_bytes(1_500_000)
    digest = hub.blob(REPO, data)
    flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}", Range="bytes=2-99999")
    assert await harness.body(flow) == data[2:100_000]
    assert flow.response is not None
    assert (flow.response.status_code, flow.response.reason) == (206, "Partial Content")


async def stored(harness: AddonHarness, hub: Hub, data: bytes) -> tuple[str, Digest, Engine]:
    """Store a blob, and return its path."""
    digest = Digest.parse(hub.blob(REPO, data))
    engine = harness.engine
    assert isinstance(engine, Engine)
    flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}")
    if flow.response is None:
        await harness.body(flow)
    await until(lambda: engine.store.has(digest) and not engine.store.usage.in_use[digest])
    return f"/v2/{REPO}/blobs/{digest}", digest, engine


@pytest.mark.parametrize("size", [1, 65_536])
@pytest.mark.parametrize("listener", ["proxy", "mirror"])
async def test_small_stored_body_is_in_the_flow(harness: AddonHarness, hub: Hub, listener: str, size: int) -> None:
    data = random_bytes(size)
    path, digest, engine = await stored(harness, hub, data)
    before = engine.metrics.registry.get_sample_value("hubcache_sent_bytes_total", {"source": "store"}) or 0
    flow = await harness.request("GET", path, listener)
    assert flow.response is not None
    assert (flow.response.content, flow.response.headers["Content-Length"]) == (data, str(size))
    part = await harness.request("GET", path, listener, Range="bytes=0-0")
    assert part.response is not None
    assert (part.response.status_code, part.response.content) == (206, data[:1])
    after = engine.metrics.registry.get_sample_value("hubcache_sent_bytes_total", {"source": "store"})
    assert after == before + size + 1
    assert not engine.store.usage.in_use[digest]


@pytest.mark.parametrize(("size", "headers"), [(65_537, {}), (100, {"Authorization": "Bearer own"})])
async def test_body_that_is_large_or_requested_with_credentials_stays_in_no_flow(
    harness: AddonHarness, hub: Hub, size: int, headers: dict[str, str]
) -> None:
    data = random_bytes(size)
    path, _, _ = await stored(harness, hub, data)
    flow = await harness.request("GET", path, "proxy", **headers)
    assert (flow.comment, flow.response) == ("hit: from the store", None)
    assert await harness.body(flow) == data


async def test_stored_file_is_closed_when_the_client_disconnects(harness: AddonHarness, hub: Hub) -> None:
    digest = hub.blob(REPO, random_bytes(100_000))
    await harness.body(await harness.request("GET", f"/v2/{REPO}/blobs/{digest}"))
    store = harness.engine.store
    await until(lambda: store.has(Digest.parse(digest)) and not store.usage.in_use)
    flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}")
    assert store.usage.in_use
    await harness.hooks.error(flow)
    assert not store.usage.in_use
    assert harness.hooks._deliveries == {}


async def test_body_of_a_disconnected_client_is_not_fetched_again(harness: AddonHarness, hub: Hub) -> None:
    """Not even a second fetch of the blob that the body listener's reader misses."""
    data = random_bytes(100_000)
    digest = hub.blob(REPO, data)
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=0))
    flow = await harness.request("GET", f"/v2/{REPO}/blobs/{digest}")
    reader, writer = await asyncio.open_connection(flow.request.host, flow.request.port)
    writer.write(f"GET {flow.request.path} HTTP/1.1\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await harness.hooks.error(flow)
    hub.faults.remove(fault)
    engine = harness.engine
    await until(lambda: not engine.fills._tasks)
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()
    assert hub.count(kind="cdn", method="GET") == 1


async def test_push_is_directed_to_the_upstream_and_streamed(harness: AddonHarness, hub: Hub) -> None:
    flow = await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy", Authorization="Bearer own")
    assert (flow.request.scheme, flow.request.host, flow.request.port) == ("http", "localhost", hub.ports["registry"])
    assert callable(flow.request.stream)
    assert b"Authorization: Bearer own" in bytes(flow.request.headers)
    assert "own" not in str(dict(flow.request.headers))
    assert flow.marked == ":push:"


@pytest.mark.parametrize(("status", "is_requested_again"), [(201, True), (401, False)])
async def test_accepted_push_makes_the_cache_forget_the_tag(
    harness: AddonHarness, hub: Hub, status: int, is_requested_again: bool
) -> None:
    hub.image(REPO, "1")
    await harness.request("GET", f"/v2/{REPO}/manifests/1")
    flow = await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy", Authorization="Bearer own")
    flow.response = Response.make(status)
    forgetting = harness.hooks.responseheaders(flow)
    if forgetting is not None:  # mitmproxy awaits it, and then sends the head of the answer to the client
        await forgetting
    hub.reset_log()
    await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert (hub.count() > 0) is is_requested_again
    assert harness.hooks._forwards == {}


async def test_nothing_is_kept_of_a_push_that_failed(harness: AddonHarness, hub: Hub) -> None:
    flow = await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy")
    await harness.hooks.error(flow)
    assert harness.hooks._forwards == {}


# -- records of requests


@pytest.fixture
def served(harness: AddonHarness, monkeypatch: pytest.MonkeyPatch) -> list[ServedRequest]:
    """The records that the engine receives."""
    records: list[ServedRequest] = []
    monkeypatch.setattr(harness.engine, "request_ended", records.append)
    return records


async def test_flows_are_recorded_when_they_end(harness: AddonHarness, hub: Hub, served: list[ServedRequest]) -> None:
    image = hub.image(REPO, "1", [random_bytes(1_500_000)])
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert served == []
    harness.hooks.response(flow)
    assert await harness.body(await harness.request("GET", f"/v2/{REPO}/blobs/{image.layers[0]}"))
    manifest, blob = served
    assert (manifest.kind, manifest.reference, manifest.sent) == ("manifest", "1", len(image.manifest))
    assert (blob.kind, blob.reference, blob.sent, blob.size) == ("blob", image.layers[0], 1_500_000, 1_500_000)
    assert all(each.is_complete and 0 < each.first_byte <= each.duration for each in served)
    assert harness.hooks._records._running == {}


async def test_flow_whose_client_disconnects_is_recorded_as_incomplete(
    harness: AddonHarness, hub: Hub, served: list[ServedRequest]
) -> None:
    digest = hub.blob(REPO, random_bytes(1_500_000))
    await harness.hooks.error(await harness.request("GET", f"/v2/{REPO}/blobs/{digest}"))
    (found,) = served
    assert (found.is_complete, found.sent, found.size, found.error) == (False, 0, 1_500_000, "")


async def test_bytes_of_a_forwarded_answer_are_counted(harness: AddonHarness, served: list[ServedRequest]) -> None:
    for announces_length in (True, False):
        flow = await harness.request("GET", f"/v2/{REPO}/tags/list", "proxy", Authorization="Bearer own")
        flow.response = Response.make(200)
        flow.response.headers["Content-Length"] = "11"
        if not announces_length:
            del flow.response.headers["Content-Length"]
        harness.hooks.responseheaders(flow)
        stream: Any = flow.response.stream
        assert [stream(data) for data in (b"hello ", b"world", b"")] == [b"hello ", b"world", b""]
        harness.hooks.response(flow)
    for found in served:
        assert (found.result, found.status, found.is_private, found.is_complete) == (Result.BYPASS, 200, True, True)
        assert (found.sent, found.size, found.repository, found.kind) == (11, 11, REPO, "other")
    assert len(served) == 2


async def test_forwarded_request_without_an_answer_is_recorded(
    harness: AddonHarness, served: list[ServedRequest]
) -> None:
    await harness.hooks.error(await harness.request("PUT", f"/v2/{REPO}/manifests/1", "proxy"))
    (found,) = served
    assert (found.method, found.status, found.is_complete, found.is_private) == ("PUT", 0, False, False)


async def test_flow_that_is_answered_already_stays_as_it_is(harness: AddonHarness) -> None:
    """Another addon may have answered it, or the user in mitmweb."""
    flow = tflow.tflow(resp=True)
    flow.request.url = f"https://{HUB_HOST}/v2/"
    await harness.hooks.requestheaders(flow)
    assert flow.request.url == f"https://{HUB_HOST}/v2/"


async def test_requests_wait_until_the_store_is_open(hub: Hub, tmp_path: Path) -> None:
    with loaded_addon(hub, tmp_path) as loaded:
        early = asyncio.create_task(loaded.request("GET", "/v2/"))
        await asyncio.sleep(0.05)
        assert not early.done()
        await loaded.addon.running()
        flow = await early
        assert flow.response is not None
        assert flow.response.status_code == 200
        await loaded.addon.done()
