"""A registry may refuse HEAD for a blob and permit GET (ECR Public): then the response to GET decides."""

from pathlib import Path

import pytest
from hubcache.oci.account import Account
from hubcache.oci.digest import Digest
from hubcache.serve import blob_access
from hubcache.serve.messages import Answer, Listener, Result
from support.engine import Cache, running
from support.standin import Fault, Hub, Image, random_bytes
from support.users import EACH_LISTENER, REFUSED, SECRET, bearer, pull, settled, turn_private

REPO = "alice/app"
LAYER = random_bytes(100_000, "layer")
STATUSES = pytest.mark.parametrize("status", [401, 403, 405])


pytestmark = pytest.mark.usefixtures("short_times")


def refuse_heads(hub: Hub, status: int = 401) -> Fault:
    return hub.faults.add(Fault(kind="blob", method="HEAD", status=status))


async def head(cache: Cache, listener: Listener, path: str) -> int:
    answer, _ = await cache.ask(listener, "HEAD", path)
    assert isinstance(answer, Answer)
    return answer.status


@EACH_LISTENER
@STATUSES
async def test_blob_stays_readable_when_head_is_refused(
    cache: Cache, hub: Hub, listener: Listener, status: int
) -> None:
    image = hub.image(REPO, "1", [LAYER])
    refuse_heads(hub, status)
    path = f"/v2/{REPO}/blobs/{image.layers[0]}"
    for method in ("HEAD", "GET", "HEAD", "GET"):
        answer, body = await cache.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.length) == (200, len(LAYER))
        assert body == (LAYER if method == "GET" else b"")
        await settled(cache)
    assert set(await pull(cache, image, listener)) == {200}


@EACH_LISTENER
@STATUSES
async def test_stored_blob_is_served_from_a_repository_that_confirms_it(
    cache: Cache, hub: Hub, listener: Listener, status: int
) -> None:
    """The blob is not downloaded again: the head of the response to GET suffices."""
    digest = hub.blob(REPO, LAYER)
    hub.blob("library/other", LAYER)
    assert await cache.get(listener, f"/v2/{REPO}/blobs/{digest}") == (200, LAYER)
    await settled(cache)
    refuse_heads(hub, status)
    for _ in range(2):
        answer, body = await cache.ask(listener, "GET", f"/v2/library/other/blobs/{digest}")
        assert isinstance(answer, Answer)
        assert (answer.result, body) == (Result.HIT, LAYER)
    assert hub.count(kind="cdn", repo="library/other") <= 1


@EACH_LISTENER
async def test_refused_get_makes_the_repository_private_but_refused_head_does_not(
    cache: Cache, hub: Hub, listener: Listener
) -> None:
    image = hub.image(REPO, "1", [LAYER])
    assert set(await pull(cache, image, listener)) == {200}
    new = hub.blob(REPO, b"new")
    refuse_heads(hub)
    assert await head(cache, listener, f"/v2/{REPO}/blobs/{new}") == 200
    assert cache.engine._access.can_read_repository("registry-1.docker.io", REPO, None)
    turn_private(hub, REPO)
    other = hub.blob(REPO, b"other")
    assert await head(cache, listener, f"/v2/{REPO}/blobs/{other}") == REFUSED[listener]
    assert not cache.engine._access.can_read_repository("registry-1.docker.io", REPO, None)
    assert (await cache.get(listener, f"/v2/{REPO}/manifests/{image.digest}"))[0] == REFUSED[listener]


@EACH_LISTENER
async def test_blob_is_404_when_get_is_404(cache: Cache, hub: Hub, listener: Listener) -> None:
    hub.image(REPO, "1", [LAYER])
    refuse_heads(hub)
    absent = f"/v2/{REPO}/blobs/sha256:{'0' * 64}"
    for method in ("HEAD", "GET", "HEAD"):
        answer, _ = await cache.ask(listener, method, absent)
        assert isinstance(answer, Answer)
        assert answer.status == 404
    assert hub.count(kind="blob", method="GET", token="valid") == 1


async def test_get_is_used_for_a_while_after_refused_heads(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each blob would cost two requests."""
    fault = refuse_heads(hub)
    blobs = [hub.blob(REPO, bytes([number])) for number in range(6)]
    for blob in blobs[:4]:
        assert await head(cache, Listener.MIRROR, f"/v2/{REPO}/blobs/{blob}") == 200
    sent_before = fault.hits
    assert sent_before <= 3, "the first time: without a token, with one, and with another one"
    cache.engine._blobs._blob_access._headless.clear()  # as after its lifetime
    assert await head(cache, Listener.MIRROR, f"/v2/{REPO}/blobs/{blobs[4]}") == 200
    assert fault.hits > sent_before
    assert cache.engine._blobs._blob_access._headless.ttl == blob_access.HEADLESS_SECONDS


async def test_account_is_not_used_where_only_get_proves_public_access(hub: Hub, tmp_path: Path) -> None:
    hub.user("robot", "robot's")
    image = hub.image(REPO, "1", [LAYER])
    refuse_heads(hub)
    async with running(hub, tmp_path / "store", account=Account("robot", "robot's")) as cache:
        path = f"/v2/{REPO}/blobs/{image.layers[0]}"
        assert await cache.get(Listener.MIRROR, path) == (200, LAYER)
        turn_private(hub, REPO, robot="robot's")
        new = hub.blob(REPO, b"new")
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{new}"))[0] == 404
        assert hub.count(kind="blob", user="robot") == 0


async def test_stored_private_image_is_served_to_its_users_only(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    refuse_heads(hub)
    path = f"/v2/{SECRET}/blobs/{secret.layers[0]}"
    own = bearer(hub, "alice", SECRET)
    answer, body = await cache_with_secret.ask(Listener.PROXY, "GET", path, authorization=own)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.result) == (200, Result.HIT)
    assert body == random_bytes(100_000, "secret")
    for headers in ({}, {"authorization": bearer(hub, "bob", SECRET)}):
        assert (await cache_with_secret.get(Listener.PROXY, path, **headers))[0] == 401
    assert cache_with_secret.engine.store.has(Digest.parse(secret.layers[0]))
