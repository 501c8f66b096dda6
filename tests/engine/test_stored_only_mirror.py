"""A mirror that serves only complete images (`hubcache_mirror_miss=notfound`)."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve import stored_only_mirror
from hubcache.serve.client_platform import platform_of
from hubcache.serve.messages import Answer, Listener
from support.engine import Cache, read, running
from support.standin import Hub, Image, random_bytes

AMD64 = "docker/29.0.0 go/go1.25 os/linux arch/amd64 UpstreamClient(Docker-Client/29.0.0)"
ARM64 = AMD64.replace("amd64", "arm64")


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store", offer_only=True) as started:
        yield started


async def ask(
    cache: Cache, path: str, *, method: str = "GET", client: str = "10.0.0.1", agent: str = AMD64
) -> tuple[int, bytes]:
    request = cache.request(Listener.MIRROR, method, path, user_agent=agent)
    answer = await cache.engine.service.answer(
        type(request)(request.method, request.path, request.registry, request.listener, request.headers, "", client)
    )
    assert isinstance(answer, Answer)
    return answer.status, await read(answer)


async def settled(cache: Cache) -> None:
    """Wait until no fetch runs in the background."""
    while tasks := list(cache.engine._mirror._fetching.values()):
        await asyncio.wait(tasks)


async def pull(cache: Cache, image: Image, client: str = "10.0.0.1", agent: str = AMD64) -> int:
    """Request as dockerd does at a mirror: HEAD, and after a failure GET. Return the last status."""
    path = f"/v2/{image.repo}/manifests/{image.tag}"
    status, _ = await ask(cache, path, method="HEAD", client=client, agent=agent)
    if status != 200:
        status, _ = await ask(cache, path, client=client, agent=agent)
    await settled(cache)
    return status


def digest_of(image: Image) -> str:
    return f"sha256:{sha256(image.manifest).hexdigest()}"


async def test_image_is_served_after_it_was_requested_often_enough(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", layers=[random_bytes(50_000)])
    assert await pull(cache, image, "10.0.0.1") == 404
    assert hub.count(kind="manifest") == 0
    assert await pull(cache, image, "10.0.0.2") == 404
    hub.reset_log()
    assert await pull(cache, image) == 200
    assert (await ask(cache, f"/v2/{image.repo}/manifests/{digest_of(image)}"))[1] == image.manifest
    for blob in (image.config, *image.layers):
        status, body = await ask(cache, f"/v2/{image.repo}/blobs/{blob}")
        assert status == 200
        assert str(Digest.of(body)) == blob
    assert hub.log == []


async def test_head_and_get_of_one_client_are_one_pull(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", layers=[b"x"])
    await pull(cache, image)
    assert hub.log == []


async def test_only_requested_platforms_are_fetched_and_served(cache: Cache, hub: Hub) -> None:
    images = {
        platform: hub.image("library/multi", None, layers=[platform.encode()], platform=platform)
        for platform in ("linux/amd64", "linux/arm64")
    }
    index = hub.index("library/multi", "1", images)
    for client in ("10.0.0.1", "10.0.0.2"):
        await pull(cache, index, client)
    assert await pull(cache, index) == 200
    assert (await ask(cache, f"/v2/library/multi/blobs/{images['linux/amd64'].layers[0]}"))[0] == 200
    assert (await ask(cache, f"/v2/library/multi/blobs/{images['linux/arm64'].layers[0]}"))[0] == 404
    assert await pull(cache, index, "10.0.0.3", ARM64) == 404
    assert await pull(cache, index, "10.0.0.3", ARM64) == 200


async def test_image_that_lost_a_blob_is_not_served(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", layers=[random_bytes(50_000)])
    for client in ("10.0.0.1", "10.0.0.2"):
        await pull(cache, image, client)
    assert await pull(cache, image) == 200
    await cache.engine.store.remove(Digest.parse(image.layers[0]))
    assert (await ask(cache, f"/v2/{image.repo}/manifests/{image.tag}", method="HEAD"))[0] == 404
    assert (await ask(cache, f"/v2/{image.repo}/manifests/{digest_of(image)}"))[0] == 404
    await settled(cache)


async def test_image_of_a_moved_tag_is_fetched_before_it_is_served(cache: Cache, hub: Hub) -> None:
    old = hub.image("library/app", "1", layers=[b"old"])
    for client in ("10.0.0.1", "10.0.0.2"):
        await pull(cache, old, client)
    new = hub.image("library/app", "1", layers=[b"new"])
    cache.apply(tag_ttl=0.0)
    assert (await ask(cache, f"/v2/{old.repo}/manifests/1", method="HEAD"))[0] == 404
    await settled(cache)
    assert (await ask(cache, f"/v2/{old.repo}/manifests/1"))[1] == new.manifest
    assert (await ask(cache, f"/v2/{old.repo}/blobs/{new.layers[0]}"))[1] == b"new"


async def test_private_image_is_never_served(cache: Cache, hub: Hub) -> None:
    image = hub.image("acme/secret", "1", layers=[b"x"])
    hub.private("acme/secret", {"ann": "pw"})
    for client in range(4):
        assert await pull(cache, image, f"10.0.0.{client}") == 404
    assert not cache.engine.store.has(Digest.parse(image.layers[0]))


async def test_complete_image_is_served_in_an_outage(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", layers=[b"x"])
    for client in ("10.0.0.1", "10.0.0.2"):
        await pull(cache, image, client)
    hub.stop()
    cache.apply(tag_ttl=0.0)
    assert await pull(cache, image) == 200
    assert (await ask(cache, f"/v2/{image.repo}/blobs/{image.layers[0]}"))[1] == b"x"


async def test_option_does_not_affect_the_proxy(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", layers=[b"x"])
    assert await cache.get(Listener.PROXY, f"/v2/{image.repo}/manifests/1") == (200, image.manifest)


async def test_user_agents_are_not_kept(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", layers=[b"x"])
    for number in range(50):
        agent = f"docker os/o{number} arch/a{number} {'x' * 14_000}"
        assert await pull(cache, image, f"10.0.0.{number}", agent) in (404, 200)
    (counted,) = cache.engine._mirror._requests.values()
    assert counted[1] == {platform_of("")}


async def test_number_of_concurrent_fetches_is_bounded(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_only_mirror, "_MAX_FETCHING", 3)
    for number in range(10):
        for client in ("10.0.0.1", "10.0.0.2"):
            assert (await ask(cache, f"/v2/library/app/manifests/{number}", client=client))[0] == 404
            assert len(cache.engine._mirror._fetching) <= 3
    await settled(cache)


@pytest.mark.parametrize("agent", ["os/linux arch/vax", "os/plan9 arch/amd64", "os/linux arch/amd64x", "os/ arch/"])
def test_unknown_platform_counts_as_the_machines_own(agent: str) -> None:
    assert platform_of(agent) == platform_of("")


def test_platform_is_read_from_the_user_agent() -> None:
    assert platform_of(ARM64) == "linux/arm64/"
    assert platform_of("containerd/2.1").startswith("linux/")
