"""Knowing a digest grants no access: content is served for the repositories that it is known to belong to."""

import asyncio
import json

import pytest
from hubcache.serve.messages import Answer, Listener
from support.engine import Cache
from support.standin import Fault, Hub, Image, random_bytes
from support.standin.media import OCI_LAYER, OCI_MANIFEST
from support.users import EACH_LISTENER, assert_refused, pull, turn_private, until

pytestmark = pytest.mark.usefixtures("short_times")


def set_trap(hub: Hub, blob: str) -> None:
    """Push a public manifest that names the digest of another user's layer."""
    layers = [{"mediaType": OCI_LAYER, "digest": blob, "size": 100_000}]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers}).encode()
    hub.manifest("mallory/trap", "1", body, OCI_MANIFEST)


@EACH_LISTENER
async def test_private_digest_requested_in_a_public_repository_is_checked_upstream(
    cache_with_secret: Cache, hub: Hub, secret: Image, listener: Listener
) -> None:
    public = hub.image("library/app", "1")
    assert set(await pull(cache_with_secret, public)) == {200}
    hub.reset_log()
    for kind, digest in (("manifest", secret.digest), ("blob", secret.layers[0]), ("blob", secret.config)):
        for method in ("HEAD", "GET"):
            answer, body = await cache_with_secret.ask(listener, method, f"/v2/library/app/{kind}s/{digest}")
            assert isinstance(answer, Answer)
            assert answer.status == 404
            assert method == "HEAD" or b"_UNKNOWN" in body
        assert hub.count(kind=kind, repo="library/app", path=f"*{digest}") >= 1


@EACH_LISTENER
async def test_manifest_that_names_a_private_digest_grants_no_access(
    cache_with_secret: Cache, hub: Hub, secret: Image, listener: Listener
) -> None:
    """A registry takes manifests whose layers it does not have (foreign layers, OCI 1.1 sparse ones): any client may
    push a manifest with the digest of content that it wants to read."""
    blob = secret.layers[0]
    set_trap(hub, blob)
    assert (await cache_with_secret.get(listener, "/v2/mallory/trap/manifests/1"))[0] == 200
    for method in ("HEAD", "GET"):
        answer, body = await cache_with_secret.ask(listener, method, f"/v2/mallory/trap/blobs/{blob}")
        assert isinstance(answer, Answer)
        assert answer.status == 404, "served from the store without a request upstream"
        assert random_bytes(100_000, "secret") != body


@EACH_LISTENER
async def test_index_that_names_a_private_manifest_grants_no_access(
    cache_with_secret: Cache, hub: Hub, secret: Image, listener: Listener
) -> None:
    hub.index("mallory/trap", "1", {"linux/amd64": secret})
    assert (await cache_with_secret.get(listener, "/v2/mallory/trap/manifests/1"))[0] == 200
    status, body = await cache_with_secret.get(listener, f"/v2/mallory/trap/manifests/{secret.digest}")
    assert (status, secret.manifest in body) == (404, False)


@EACH_LISTENER
async def test_blob_in_a_private_and_a_public_repository_is_served_for_the_public_one(
    cache_with_secret: Cache, hub: Hub, secret: Image, listener: Listener
) -> None:
    public = hub.image("library/app", "1", [random_bytes(100_000, "secret")])
    assert public.layers == secret.layers
    for _ in range(2):
        assert set(await pull(cache_with_secret, public, listener)) == {200}
        await assert_refused(cache_with_secret, secret, listener)
    assert hub.count(kind="cdn", method="GET", path=f"*{secret.layers[0]}*") == 0, "it was here already"
    hub.stop()
    assert (await cache_with_secret.get(listener, f"/v2/library/app/blobs/{public.layers[0]}"))[0] == 200


@EACH_LISTENER
async def test_blob_of_two_public_repositories_is_served_after_one_turns_private(
    cache: Cache, hub: Hub, listener: Listener
) -> None:
    mine, theirs = hub.image("alice/app", "1"), hub.image("library/app", "1")
    assert set(await pull(cache, mine) + await pull(cache, theirs)) == {200}
    turn_private(hub, "alice/app")
    cache.apply(tag_ttl=0.0)
    await assert_refused(cache, mine, listener)
    hub.reset_log()
    assert (await cache.get(listener, f"/v2/library/app/blobs/{theirs.layers[0]}"))[0] == 200
    assert hub.count() == 0


@EACH_LISTENER
async def test_request_in_a_repository_without_the_blob_does_not_disturb_a_pull_from_one_with_it(
    cache: Cache, hub: Hub, listener: Listener
) -> None:
    image = hub.image("library/app", "1", [random_bytes(100_000)])
    hub.image("library/other", "1", [b"another"])
    slow = hub.faults.add(Fault(kind="blob", method="GET", path="/v2/library/other/*", delay=0.4, times=1))
    wrong = asyncio.create_task(cache.get(listener, f"/v2/library/other/blobs/{image.layers[0]}"))
    await until(lambda: slow.hits)
    assert await cache.get(listener, f"/v2/library/app/blobs/{image.layers[0]}") == (200, random_bytes(100_000))
    assert (await wrong)[0] == 404


@EACH_LISTENER
async def test_manifest_that_names_content_that_turned_private_grants_no_access(
    cache: Cache, hub: Hub, listener: Listener
) -> None:
    """The manifest was stored while the layer was public; now only the digest of the layer is known."""
    app = hub.image("alice/app", "1", [random_bytes(100_000)])
    hub.image("alice/app", "2", [b"two"])
    assert set(await pull(cache, app)) == {200}
    turn_private(hub, "alice/app")
    await cache.get(listener, "/v2/alice/app/manifests/2")
    set_trap(hub, app.layers[0])
    assert (await cache.get(listener, "/v2/mallory/trap/manifests/1"))[0] == 200
    for method in ("HEAD", "GET"):
        answer, body = await cache.ask(listener, method, f"/v2/mallory/trap/blobs/{app.layers[0]}")
        assert isinstance(answer, Answer)
        assert (answer.status, random_bytes(100_000) == body) == (404, False)
