"""Responses of a CDN are not the registry's: they prove nothing about access, existing content or rate limits."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ManifestUnknown, Unavailable
from hubcache.serve.messages import Answer, Listener
from hubcache.transfer import fills as fills_module
from hubcache.transfer import upstream as upstream_module
from support.engine import Cache, running
from support.standin import Fault, Hub, Image
from support.upstreams import upstream_to
from support.users import EACH_LISTENER, pull, requests_of, settled

REPO = "library/app"
COLD = Digest.of(b"cold layer")


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch, short_times: None) -> None:
    monkeypatch.setattr(upstream_module, "_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(fills_module, "_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def image(hub: Hub) -> Image:
    hub.blob(REPO, b"cold layer")
    return hub.image(REPO, "1")


@pytest.fixture
async def cache(hub: Hub, image: Image, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store") as started:
        await pull(started, image)
        yield started


async def request_new_blob(cache: Cache, listener: Listener) -> int:
    status, _ = await cache.get(listener, f"/v2/{REPO}/blobs/{COLD}")
    await settled(cache)
    return status


@EACH_LISTENER
@pytest.mark.parametrize("status", [401, 403, 404, 410, 418, 429])
async def test_refusal_of_a_cdn_makes_no_repository_private(
    cache: Cache, hub: Hub, image: Image, tmp_path: Path, listener: Listener, status: int
) -> None:
    """In an outage right after the refusal, stored content is still served, also after a restart."""
    hub.faults.add(Fault(kind="cdn", status=status, body="<Error>AccessDenied</Error>"))
    assert await request_new_blob(cache, listener) == 503
    hub.stop()
    assert set(await pull(cache, image, listener)) == {200}
    await cache.engine.close()
    async with running(hub, tmp_path / "store") as again:
        assert set(await pull(again, image, listener)) == {200}


@EACH_LISTENER
@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_refused_cdn_request_is_retried_with_a_new_signature(
    cache: Cache, hub: Hub, listener: Listener, status: int
) -> None:
    hub.faults.add(Fault(kind="cdn", status=status, times=1))
    hub.reset_log()
    assert await request_new_blob(cache, listener) == 200
    assert hub.count(kind="blob", status=307) == 2


@EACH_LISTENER
async def test_expired_signature_is_replaced_by_a_new_one(
    cache: Cache, hub: Hub, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.cdn, "lifetime", -10)
    assert await request_new_blob(cache, listener) == 503
    monkeypatch.setattr(hub.cdn, "lifetime", 1200)
    assert await request_new_blob(cache, listener) == 200


@EACH_LISTENER
async def test_rate_limit_of_a_cdn_is_not_the_registrys(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    headers = {"Retry-After": "3600", "ratelimit-limit": "5;w=60", "ratelimit-remaining": "0;w=60"}
    fault = hub.faults.add(Fault(kind="cdn", status=429, headers=headers))
    assert await request_new_blob(cache, listener) == 503
    assert cache.engine.metrics.remaining("registry-1.docker.io", "anonymous") is None
    hub.faults.remove(fault)
    assert await request_new_blob(cache, listener) == 200


async def test_challenge_of_a_cdn_is_not_passed_on(cache: Cache, hub: Hub) -> None:
    evil = {"WWW-Authenticate": 'Bearer realm="http://evil.example/token",service="x"'}
    hub.faults.add(Fault(kind="cdn", status=401, headers=evil))
    answer, body = await cache.ask(Listener.PROXY, "GET", f"/v2/{REPO}/blobs/{COLD}")
    assert "evil" not in str(answer) + body.decode()


@EACH_LISTENER
@pytest.mark.parametrize("status", [401, 403])
async def test_refusal_of_the_registry_makes_the_repository_private(
    cache: Cache, hub: Hub, image: Image, listener: Listener, status: int
) -> None:
    hub.faults.add(Fault(kind="blob", status=status))
    assert await request_new_blob(cache, listener) == (404 if listener is Listener.MIRROR else status)
    hub.stop()
    cache.engine._manifests.tag_lifetime = 0.0
    for method, path in requests_of(image):
        answer, _ = await cache.ask(listener, method, path)
        assert answer.status == 503  # type: ignore[union-attr]


@EACH_LISTENER
@pytest.mark.parametrize("status", [401, 403, 404, 405, 501])
async def test_blob_is_readable_when_the_cdn_refuses_head(
    cache: Cache, hub: Hub, image: Image, listener: Listener, status: int
) -> None:
    """A signature may be valid for GET only. The blob is new, or was stored from another repository."""
    hub.faults.add(Fault(kind="cdn", method="HEAD", status=status))
    hub.blob("library/other", b"layer")
    for repo, digest in ((REPO, COLD), ("library/other", image.layers[0])):
        for method in ("HEAD", "GET"):
            answer, _ = await cache.ask(listener, method, f"/v2/{repo}/blobs/{digest}")
            await settled(cache)
            assert isinstance(answer, Answer)
            assert (answer.status, answer.size > 0) == (200, True), (repo, method)


async def test_404_of_another_registry_after_a_redirect_is_manifest_unknown(hub: Hub) -> None:
    """registry.k8s.io redirects manifest reads to other registries; a missing manifest must not look like an outage."""
    with Hub() as other:
        other.auth = False
        other.image(REPO, "1")
        hub.faults.add(Fault(kind="manifest", path="*/1", redirect=f"{other.url()}/v2/{REPO}/manifests/1"))
        hub.faults.add(Fault(kind="manifest", redirect=f"{other.url()}/v2/{REPO}/manifests/none"))
        async with upstream_to(hub) as line:
            assert (await line.upstream.get_manifest(REPO, "1", "*/*")).body
            for read in (line.upstream.head_manifest, line.upstream.get_manifest):
                with pytest.raises(ManifestUnknown):
                    await read(REPO, "none", "*/*")
            other.faults.add(Fault(status=403))
            with pytest.raises(Unavailable, match="redirected"):
                await line.upstream.get_manifest(REPO, "1", "*/*")
