"""Two registries: a claim of one to have a digest grants no access to bytes that the other delivered for
credentials."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hubcache.decide.records import Visibility
from hubcache.oci.digest import Digest
from hubcache.oci.errors import HubcacheError
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.serve.messages import Answer, Forward, Listener
from hubcache.serve.repository_view import RepositoryView
from support.engine import Cache, read, running
from support.standin import Fault, Hub, Image, random_bytes
from support.standin.media import OCI_MANIFEST
from support.users import EACH_LISTENER, SECRET, bearer, pull, settled, turn_private, until

OTHER = "registry.example.org"
LAYER = random_bytes(100_000, "secret")
REPO = "mallory/any"


pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture
def other() -> Iterator[Hub]:
    """A second registry, which needs no tokens."""
    with Hub() as running_hub:
        running_hub.auth = False
        running_hub.image(REPO, "own", [b"its own"])
        yield running_hub


@asynccontextmanager
async def both(hub: Hub, other: Hub, directory: Path, **changes: Any) -> AsyncIterator[Cache]:
    """A cache of both registries that stores private images for their users."""
    registries = tuple(Registry.parse(text) for text in (f"{HUB_HOST}={hub.url()}", f"{OTHER}={other.url()}"))
    async with running(hub, directory, **({"registries": registries, "authorize": True} | changes)) as cache:
        yield cache


@pytest.fixture
async def cache(hub: Hub, other: Hub, secret: Image, tmp_path: Path) -> AsyncIterator[Cache]:
    """A cache that has alice's private image from the Hub."""
    async with both(hub, other, tmp_path / "both") as started:
        assert set(await pull(started, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
        hub.reset_log()
        yield started


async def answer(
    cache: Cache, method: str, path: str, listener: Listener = Listener.PROXY, **headers: str
) -> Answer | Forward:
    """Return the answer to a client of the second registry."""
    request = replace(cache.request(listener, method, path, **headers), registry=cache.settings.registries[1])
    outcome = await cache.engine.answer(request)
    assert outcome is not None
    return outcome


async def response(
    cache: Cache, method: str, path: str, listener: Listener = Listener.PROXY, **headers: str
) -> tuple[int, bytes]:
    """Return status and body, as far as the body arrives before it is cut short."""
    outcome = await answer(cache, method, path, listener, **headers)
    assert isinstance(outcome, Answer)
    try:
        return outcome.status, await read(outcome)
    except HubcacheError:
        return outcome.status, b""


def claim_content(other: Hub, image: Image) -> None:
    """Let the second registry answer any HEAD with 200 and any GET with 404."""
    for kind, digest, length in (("manifest", image.digest, len(image.manifest)), ("blob", image.layers[0], 100_000)):
        headers = {"Docker-Content-Digest": digest}
        other.faults.add(
            Fault(kind=kind, method="HEAD", status=200, length=length, content_type=OCI_MANIFEST, headers=headers)
        )


def serve_wrong_bytes(other: Hub) -> None:
    """Let the second registry answer any GET with other bytes of the right length."""
    other.faults.add(Fault(kind="blob", method="GET", status=200, body=b"\x00" * 100_000, content_type="a/b"))
    other.faults.add(Fault(kind="manifest", method="GET", status=200, body=b"{}", content_type=OCI_MANIFEST))


def paths(image: Image) -> list[str]:
    parts = (f"manifests/{image.digest}", "manifests/taken", f"blobs/{image.layers[0]}")
    return [f"/v2/{REPO}/{part}" for part in parts]


def assert_nothing(image: Image, body: bytes) -> None:
    assert image.manifest not in body
    assert LAYER[:100] not in body
    assert LAYER[5000:5100] not in body


@EACH_LISTENER
@pytest.mark.parametrize("lies", [False, True], ids=["claims", "lies"])
@pytest.mark.parametrize("headers", [{}, {"range": "bytes=5000-9999"}, {"authorization": "Bearer bobs"}], ids=str)
async def test_registry_that_claims_private_content_does_not_make_it_readable(
    cache: Cache, other: Hub, secret: Image, listener: Listener, lies: bool, headers: dict[str, str]
) -> None:
    claim_content(other, secret)
    if lies:
        serve_wrong_bytes(other)
    for path in paths(secret) * 2:
        for method in ("HEAD", "GET", "GET"):
            outcome = await answer(cache, method, path, listener, **headers)
            if isinstance(outcome, Forward):
                continue
            try:
                body = await read(outcome)
            except HubcacheError:
                body = b""
            assert_nothing(secret, body)
    assert not cache.engine._access.belongs_to(OTHER, Digest.parse(secret.layers[0]))
    assert not cache.engine._access.belongs_to(OTHER, Digest.parse(secret.digest))


@EACH_LISTENER
async def test_size_is_the_one_that_the_claiming_registry_returns(
    cache: Cache, other: Hub, secret: Image, listener: Listener
) -> None:
    headers = {"Docker-Content-Digest": secret.digest}
    for kind in ("manifest", "blob"):
        other.faults.add(Fault(kind=kind, method="HEAD", status=200, length=5, content_type="a/b", headers=headers))
    for path in paths(secret):
        outcome = await answer(cache, "HEAD", path, listener)
        assert isinstance(outcome, Answer)
        assert (outcome.status, outcome.length) == (200, 5)


@EACH_LISTENER
async def test_conditional_request_for_a_private_digest_is_answered_with_404(
    cache: Cache, other: Hub, secret: Image, listener: Listener
) -> None:
    """The registry does not have the content, and a 304 would show that it is stored."""
    path = f"/v2/{REPO}/blobs/{secret.layers[0]}"
    claim_content(other, secret)
    for _ in range(2):
        assert (await response(cache, "GET", path, listener, if_none_match=f'"{secret.layers[0]}"'))[0] == 404


@EACH_LISTENER
async def test_claim_grants_no_access_in_an_outage(cache: Cache, other: Hub, secret: Image, listener: Listener) -> None:
    claim_content(other, secret)
    for path in paths(secret):
        await response(cache, "HEAD", path, listener)
    other.stop()
    cache.engine._access._negative_cache._errors.clear()
    for path in paths(secret):
        status, body = await response(cache, "GET", path, listener)
        assert status == 503
        assert_nothing(secret, body)


@EACH_LISTENER
async def test_claim_grants_no_access_after_a_restart(
    hub: Hub, other: Hub, secret: Image, listener: Listener, tmp_path: Path
) -> None:
    claim_content(other, secret)
    async with both(hub, other, tmp_path / "store") as before:
        assert set(await pull(before, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
        for path in paths(secret):
            await response(before, "HEAD", path, listener)
    async with both(hub, other, tmp_path / "store") as after:
        for path in paths(secret):
            status, body = await response(after, "GET", path, listener)
            assert status in (401, 404)
            assert_nothing(secret, body)


@EACH_LISTENER
async def test_claim_does_not_join_a_fill_with_a_users_credentials(
    hub: Hub, other: Hub, secret: Image, listener: Listener, tmp_path: Path
) -> None:
    claim_content(other, secret)
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=50_000))
    async with both(hub, other, tmp_path / "store") as cache:
        own = bearer(hub, "alice", SECRET)
        path = f"/v2/{SECRET}/blobs/{secret.layers[0]}"
        filling = await cache.engine.answer(cache.request(Listener.PROXY, "GET", path, authorization=own))
        assert isinstance(filling, Answer)
        for method in ("HEAD", "GET", "GET"):
            status, body = await response(cache, method, f"/v2/{REPO}/blobs/{secret.layers[0]}", listener)
            assert status == (200 if method == "HEAD" else 404)
            assert_nothing(secret, body)
        hub.faults.remove(fault)
        assert await read(filling) == LAYER


async def test_stored_only_mirror_serves_nothing_for_a_claim(cache: Cache, other: Hub, secret: Image) -> None:
    claim_content(other, secret)
    for path in paths(secret):
        await response(cache, "HEAD", path)
    cache.apply(offer_only=True)
    for path in paths(secret):
        for method in ("HEAD", "GET"):
            status, body = await response(cache, method, path, Listener.MIRROR)
            assert status == 404
            assert_nothing(secret, body)


async def test_prefetch_does_not_accept_a_claim_in_place_of_the_bytes(cache: Cache, other: Hub, secret: Image) -> None:
    claim_content(other, secret)
    view = RepositoryView(cache.engine.service._upstreams[OTHER], REPO)
    with pytest.raises(HubcacheError):
        await cache.engine._blobs.fetch(view, Digest.parse(secret.layers[0]))
    status, body = await response(cache, "GET", f"/v2/{REPO}/blobs/{secret.layers[0]}")
    assert status == 404
    assert_nothing(secret, body)


@EACH_LISTENER
@pytest.mark.parametrize("ahead", [False, True], ids=["pull", "ahead"])
async def test_registry_that_delivers_the_bytes_becomes_a_source(
    cache: Cache, hub: Hub, other: Hub, secret: Image, listener: Listener, ahead: bool
) -> None:
    mine = other.image("library/app", "1", [LAYER])
    assert mine.manifest == secret.manifest
    if ahead:
        view = RepositoryView(cache.engine.service._upstreams[OTHER], "library/app")
        await cache.engine._blobs.fetch(view, Digest.parse(mine.layers[0]))
    for _ in range(3):
        for path in (f"manifests/{mine.digest}", "manifests/1", f"blobs/{mine.layers[0]}"):
            wanted = LAYER if path.startswith("blobs") else mine.manifest
            assert await response(cache, "GET", f"/v2/library/app/{path}", listener) == (200, wanted)
        await settled(cache)
    assert other.count(kind="cdn", method="GET") == 1
    assert other.count(kind="manifest", method="GET", status=200) == 2, "by digest, and by tag"
    assert hub.count(kind="cdn") == 0
    assert set(await pull(cache, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
    assert hub.count(kind="cdn", method="GET") == 0


async def test_private_content_without_a_known_source_is_fetched_once_more_from_each_registry(
    cache: Cache, hub: Hub, other: Hub, secret: Image
) -> None:
    """Rows of an earlier version say that content is private, but not from which registry."""
    index = cache.engine.store.index.opened()
    for digest in (secret.digest, secret.config, *secret.layers):
        index.set(f"private/{digest}", "")
    claim_content(other, secret)
    for path in paths(secret):
        assert_nothing(secret, (await response(cache, "GET", path))[1])
    for transfers in (2, 0):
        assert set(await pull(cache, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
        assert hub.count(kind="cdn", method="GET") == transfers
        hub.reset_log()


@EACH_LISTENER
@pytest.mark.parametrize("noticed", ["another tag", "tag", "manifest", "layer"])
@pytest.mark.parametrize("status", [401, 403, 404])
async def test_public_content_is_shared_until_it_turns_private(
    hub: Hub, other: Hub, listener: Listener, tmp_path: Path, noticed: str, status: int
) -> None:
    """If the registry answers 404 for private content, only the requested content is known to have turned private."""
    app = hub.image("alice/app", "1", [LAYER])
    hub.image("alice/app", "2", [b"two"])
    parts = {"tag": "manifests/1", "manifest": f"manifests/{app.digest}", "layer": f"blobs/{app.layers[0]}"}
    async with both(hub, other, tmp_path / "store", tag_ttl=0.0) as cache:
        assert set(await pull(cache, app)) == {200}
        claim_content(other, app)
        shared = f"/v2/{REPO}/blobs/{app.layers[0]}"
        assert await response(cache, "GET", shared, listener) == (200, LAYER), "as it was public"
        turn_private(hub, "alice/app")
        refusal = hub.faults.add(Fault(kind="[mb]*", status=status, body={"errors": []}))
        cache.engine._access._visibility._recent.clear()
        await cache.engine.store.registries.put_visibility(HUB_HOST, "alice/app", Visibility(True, 0.0))
        if status == 404:
            for path in parts.values():
                await cache.get(Listener.PROXY, f"/v2/alice/app/{path}")
        await cache.get(Listener.PROXY, f"/v2/alice/app/{parts.get(noticed, 'manifests/2')}")
        hub.faults.remove(refusal)
        hub.reset_log()
        for claimed in paths(app):
            found, body = await response(cache, "GET", claimed, listener)
            assert found == 404
            assert_nothing(app, body)
        own = bearer(hub, "alice", "alice/app")
        for path, wanted in ((f"blobs/{app.layers[0]}", LAYER), (f"manifests/{app.digest}", app.manifest)):
            assert await cache.get(Listener.PROXY, f"/v2/alice/app/{path}", authorization=own) == (200, wanted)
        assert hub.count(kind="cdn", method="GET") == 0, "the Hub delivered the bytes before"
        assert hub.count(kind="manifest", method="GET", status=200) == 0


async def test_evicted_content_is_private_when_it_is_stored_again(
    cache: Cache, hub: Hub, other: Hub, secret: Image
) -> None:
    digest = Digest.parse(secret.layers[0])
    await cache.engine.store.remove(digest)
    own = bearer(hub, "alice", SECRET)
    assert await cache.get(Listener.PROXY, f"/v2/{SECRET}/blobs/{digest}", authorization=own) == (200, LAYER)
    claim_content(other, secret)
    assert_nothing(secret, (await response(cache, "GET", f"/v2/{REPO}/blobs/{digest}"))[1])


async def test_slow_fill_from_one_registry_does_not_delay_clients_of_another(
    hub: Hub, other: Hub, tmp_path: Path
) -> None:
    layer = hub.blob("library/app", LAYER)
    assert other.blob(REPO, LAYER) == layer
    stall = other.faults.add(Fault(kind="cdn", method="GET", pause_after=1000))
    async with both(hub, other, tmp_path / "store") as cache:
        slow = await answer(cache, "GET", f"/v2/{REPO}/blobs/{layer}")
        await until(lambda: stall.hits)
        async with asyncio.timeout(5):
            assert await cache.get(Listener.PROXY, f"/v2/library/app/blobs/{layer}") == (200, LAYER)
        other.faults.remove(stall)
        assert await read(slow) == LAYER


# -- media types -----------------------------------------------------------------------------------------------------


@EACH_LISTENER
async def test_registry_cannot_change_the_media_type_of_another_registrys_manifest(
    hub: Hub, other: Hub, listener: Listener, tmp_path: Path
) -> None:
    app = hub.image("library/app", "1")
    bare = json.dumps({"schemaVersion": 2, "layers": []}).encode()
    old = json.dumps({"schemaVersion": 1, "name": "library/app", "fsLayers": []}).encode()
    for target, kind in ((hub, "application/vnd.docker.distribution.manifest.v1+json"), (other, "text/evil")):
        for body in (app.manifest, bare, old):
            target.manifest("library/app", None, body, kind if body == old or target is other else OCI_MANIFEST)
    kinds = {
        app.manifest: {OCI_MANIFEST},
        bare: {OCI_MANIFEST},
        old: {"application/vnd.docker.distribution.manifest.v1+json"},
    }
    async with both(hub, other, tmp_path / "store") as cache:
        for body, wanted in kinds.items():
            path = f"/v2/library/app/manifests/{Digest.of(body)}"
            assert (await response(cache, "GET", path, listener))[0] == 200
            for method in ("GET", "HEAD", "GET"):
                outcome, found = await cache.ask(listener, method, path)
                assert isinstance(outcome, Answer)
                assert {outcome.headers["Content-Type"]} == wanted, (method, body)
                assert found == (body if method == "GET" else b"")
            outcome = await answer(cache, "GET", path, listener)
            assert isinstance(outcome, Answer)
            assert outcome.headers["Content-Type"] == ("text/evil" if body == old else OCI_MANIFEST)
