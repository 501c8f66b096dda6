"""Every combination of fault, request, listener and stored content is answered as the table of faults says."""

from hashlib import sha256
from pathlib import Path

import pytest
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.transfer import upstream_client
from support.engine import Cache, running
from support.fault_table import ROWS, Row
from support.standin import Fault, Hub, Image, random_bytes

EACH_LISTENER = pytest.mark.parametrize("listener", list(Listener), ids=lambda listener: listener.value)
FAULTS = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch, short_times: None) -> None:
    monkeypatch.setattr(upstream_client, "_PROBE_SECONDS", 0.3)


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image("library/app", "1", layers=[random_bytes(300_000)])


def cause_fault(hub: Hub, row: Row) -> None:
    """Cause the row's fault."""
    what, how = row.name.split()
    listeners = {"registry": ["registry"], "token": ["token"], "cdn": ["cdn"], "all": ["registry", "token", "cdn"]}[
        what
    ]
    kinds = {"registry": "[pmb]*", "token": "token", "cdn": "cdn", "all": "*"}[what]
    match how:
        case "refused":
            hub.stop(*listeners)
        case "blackholed":
            hub.blackhole(*listeners)
        case "html":
            hub.faults.add(Fault(kind=kinds, status=200, body="<html>maintenance</html>"))
        case "429":
            body = "Too Many Requests (HAP429)."
            hub.faults.add(Fault(kind=kinds, status=429, body=body, headers={"Retry-After": "30"}))
        case status:
            hub.faults.add(Fault(kind=kinds, status=int(status), body="oops"))


async def pull(cache: Cache, image: Image) -> None:
    """Pull the image, so that it is stored."""
    assert (await cache.get(Listener.PROXY, f"/v2/{image.repo}/manifests/{image.tag}"))[0] == 200
    for blob in (image.config, *image.layers):
        assert (await cache.get(Listener.PROXY, f"/v2/{image.repo}/blobs/{blob}"))[0] == 200


def digest_of(image: Image) -> str:
    return f"sha256:{sha256(image.manifest).hexdigest()}"


@EACH_LISTENER
@FAULTS
async def test_stored_image_is_served_completely(
    cache: Cache, hub: Hub, image: Image, row: Row, listener: Listener
) -> None:
    await pull(cache, image)
    cache.engine._clients._tokens._known.clear()
    cause_fault(hub, row)
    await assert_served_whole(cache, image, listener)


async def assert_served_whole(cache: Cache, image: Image, listener: Listener) -> None:
    status, _ = await cache.get(listener, "/v2/")
    assert status == (401 if listener is Listener.PROXY else 200)
    for method in ("HEAD", "GET"):
        for reference in (image.tag, digest_of(image)):
            answer, body = await cache.ask(listener, method, f"/v2/{image.repo}/manifests/{reference}")
            assert isinstance(answer, Answer)
            assert answer.status == 200
            assert answer.length == len(image.manifest)
            assert body == (image.manifest if method == "GET" else b"")
        for blob in (image.config, *image.layers):
            answer, body = await cache.ask(listener, method, f"/v2/{image.repo}/blobs/{blob}")
            assert isinstance(answer, Answer)
            assert answer.status == 200
            assert method == "HEAD" or f"sha256:{sha256(body).hexdigest()}" == blob


@EACH_LISTENER
@FAULTS
async def test_stale_tag_is_served_and_marked(
    cache: Cache, hub: Hub, image: Image, row: Row, listener: Listener
) -> None:
    await pull(cache, image)
    cache.engine._clients._tokens._known.clear()
    cache.apply(tag_ttl=0.0)
    cause_fault(hub, row)
    for method in ("HEAD", "GET"):
        answer, _ = await cache.ask(listener, method, f"/v2/{image.repo}/manifests/{image.tag}")
        assert isinstance(answer, Answer)
        assert answer.status == 200
        if row.validates:
            assert answer.result is Result.REVALIDATED
        else:
            assert answer.result is Result.STALE
            assert "; hit; ttl=-" in answer.headers["Cache-Status"]
            assert "detail=" in answer.headers["Cache-Status"]


@EACH_LISTENER
@FAULTS
async def test_content_that_is_not_stored_gets_a_clear_error(
    cache: Cache, hub: Hub, image: Image, row: Row, listener: Listener
) -> None:
    cause_fault(hub, row)
    manifests = [] if row.name.startswith("cdn") else [f"manifests/{image.tag}", f"manifests/{digest_of(image)}"]
    for path in (f"blobs/{image.layers[0]}", *manifests):
        status, body = await cache.get(listener, f"/v2/{image.repo}/{path}")
        assert status == row.cold, path
        assert b'"errors"' in body


@EACH_LISTENER
@FAULTS
async def test_stored_image_is_served_after_a_restart_in_the_outage(
    hub: Hub, image: Image, row: Row, listener: Listener, tmp_path: Path
) -> None:
    async with running(hub, tmp_path / "store") as before:
        await pull(before, image)
    cause_fault(hub, row)
    async with running(hub, tmp_path / "store", tag_ttl=0.0) as after:
        await assert_served_whole(after, image, listener)


@FAULTS
async def test_anonymous_token_is_issued(cache: Cache, hub: Hub, row: Row) -> None:
    cause_fault(hub, row)
    query = "/token?service=registry.docker.io&scope=repository:library/app:pull"
    answer = await cache.engine.token_service.answer(cache.request(Listener.PROXY, "GET", query))
    assert answer.status == 200
    assert answer.result is Result.LOCAL
