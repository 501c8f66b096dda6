"""Removal of images and of content from the store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.control.errors import NotKnown, Refused
from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from hubcache.oci.registry import HUB_HOST
from hubcache.serve.messages import Answer, Listener
from hubcache.store.private_content import PrivateContent
from support.engine import Cache, read, running
from support.standin import Fault, Hub, Image, random_bytes
from support.users import SECRET, bearer
from support.users import pull as pull_with

REPO = "library/app"
APP = ImageName.parse("app:1")


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store") as running_cache:
        yield running_cache


async def pull(cache: Cache, image: Image, reference: str, repo: str = REPO) -> None:
    """Pull an image without an index as clients do."""
    statuses = [await status_of(cache, reference, repo)]
    statuses += [(await cache.get(Listener.MIRROR, f"/v2/{repo}/blobs/{digest}"))[0] for digest in image.blobs]
    assert set(statuses) == {200}
    await asyncio.gather(*cache.engine.fills._tasks)


async def status_of(cache: Cache, reference: str, repo: str = REPO) -> int:
    """Return the status of a GET of a manifest."""
    return (await cache.get(Listener.MIRROR, f"/v2/{repo}/manifests/{reference}"))[0]


def stored(cache: Cache) -> set[str]:
    """Return the digests of all stored content."""
    return set(map(str, cache.engine.store.usage.sizes))


def content(image: Image) -> set[str]:
    """Return the digests of an image."""
    return {image.digest, *image.blobs}


async def test_purged_image_is_fetched_again(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(1000)])
    await pull(cache, image, "1")
    result = await cache.engine.control.commands.purge.image(APP)
    assert set(result["removed"]) == content(image)
    assert result["bytes"] > 1000
    assert result["tags"] == ["app:1"]
    assert stored(cache) == set()
    hub.reset_log()
    await pull(cache, image, "1")
    assert stored(cache) == content(image)
    assert hub.count(kind="manifest", method="GET") == 1


async def test_pull_of_a_purged_image_fails_while_the_upstream_is_down(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(1000)])
    await pull(cache, image, "1")
    hub.stop()
    assert await status_of(cache, "1") == 200
    await cache.engine.control.commands.purge.image(APP)
    assert await status_of(cache, "1") == 503
    assert await status_of(cache, image.digest) == 503
    head, _ = await cache.ask(Listener.MIRROR, "HEAD", f"/v2/{REPO}/manifests/1")
    assert isinstance(head, Answer)
    assert head.status == 503
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{image.layers[0]}"))[0] == 503


async def test_content_of_another_tag_stays(cache: Cache, hub: Hub) -> None:
    shared = random_bytes(1000)
    one = hub.image(REPO, "1", layers=[shared, random_bytes(99, 1)])
    two = hub.image("library/other", "2", layers=[shared, random_bytes(99, 2)])
    await pull(cache, one, "1")
    await pull(cache, two, "2", "library/other")
    result = await cache.engine.control.commands.purge.image(APP)
    assert stored(cache) == content(two)
    assert one.layers[0] in result["kept"]
    hub.stop()
    await pull(cache, two, "2", "library/other")


async def test_image_that_another_tag_refers_to_stays(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    hub.memory.put_manifest(REPO, "2", image.manifest, image.media_type)
    await pull(cache, image, "1")
    await pull(cache, image, "2")
    result = await cache.engine.control.commands.purge.image(APP)
    assert (result["removed"], result["tags"]) == ([], ["app:1"])
    hub.stop()
    await pull(cache, image, "2")
    assert await status_of(cache, "1") == 503


async def test_layers_of_an_image_without_a_tag_stay(cache: Cache, hub: Hub) -> None:
    shared = random_bytes(1000)
    one = hub.image(REPO, "1", layers=[shared])
    other = hub.image(REPO, None, layers=[shared, random_bytes(9, 1)])
    await pull(cache, one, "1")
    await pull(cache, other, other.digest)
    await cache.engine.control.commands.purge.image(APP)
    assert stored(cache) == content(other)


async def test_platforms_attestations_and_referrers_are_removed_with_an_image(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, None, layers=[random_bytes(99)])
    index = hub.index(REPO, "1", {"linux/amd64": image}, attested=True)
    await pull(cache, index, "1")
    await pull(cache, image, image.digest)
    [attestation] = index.attestations.values()
    await pull(cache, attestation, attestation.digest)
    tag = f"sha256-{index.digest.partition(':')[2]}.sig"
    signature = hub.image(REPO, tag, layers=[b"signature"])
    await pull(cache, signature, tag)
    hub.referrers = True
    sbom = hub.image(REPO, None, layers=[b"sbom"], subject=index, artifact_type="application/spdx")
    path = f"/v2/{REPO}/referrers/{index.digest}"
    assert (await cache.get(Listener.MIRROR, path))[0] == 200
    await pull(cache, sbom, sbom.digest)
    result = await cache.engine.control.commands.purge.image(APP)
    assert stored(cache) == set()
    assert set(result["tags"]) == {"app:1", f"app:{tag}"}
    hub.stop()
    assert await status_of(cache, tag) != 200
    assert (await cache.get(Listener.MIRROR, path))[0] != 200


async def test_signatures_of_an_image_with_another_tag_stay(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    hub.memory.put_manifest(REPO, "2", image.manifest, image.media_type)
    await pull(cache, image, "1")
    await pull(cache, image, "2")
    tag = f"sha256-{image.digest.partition(':')[2]}.sig"
    signature = hub.image(REPO, tag, layers=[b"signature"])
    await pull(cache, signature, tag)
    result = await cache.engine.control.commands.purge.image(APP)
    assert (result["removed"], result["tags"]) == ([], ["app:1"])
    hub.stop()
    await pull(cache, signature, tag)


async def test_pinned_image_is_purged_only_with_force(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    await pull(cache, image, "1")
    await cache.engine.control.commands.pins.pin(APP)
    for purge in (
        cache.engine.control.commands.purge.image(APP),
        cache.engine.control.commands.purge.image(ImageName.parse(f"app@{image.digest}")),
        cache.engine.control.commands.purge.content(Digest.parse(image.layers[0])),
    ):
        with pytest.raises(Refused, match="pinned"):
            await purge
    assert stored(cache) == content(image)
    await cache.engine.control.commands.purge.image(APP, force=True)
    assert stored(cache) == set()
    await pull(cache, image, "1")
    await cache.engine.store.maintain()
    assert cache.engine.store.usage.is_protected(Digest.parse(image.digest))  # the pin is about the name


async def test_content_of_a_pinned_image_stays(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    hub.memory.put_manifest(REPO, "2", image.manifest, image.media_type)
    await pull(cache, image, "1")
    await pull(cache, image, "2")
    await cache.engine.control.commands.pins.pin(ImageName.parse("app:2"))
    assert (await cache.engine.control.commands.purge.image(APP))["removed"] == []
    assert stored(cache) == content(image)


async def test_content_that_is_named_by_its_digest_is_removed_although_a_tag_uses_it(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, None, layers=[random_bytes(99), random_bytes(99, 1)])
    index = hub.index(REPO, "1", {"linux/amd64": image})
    await pull(cache, index, "1")
    await pull(cache, image, image.digest)
    result = await cache.engine.control.commands.purge.content(Digest.parse(image.layers[0]))
    assert result["removed"] == [image.layers[0]]
    assert stored(cache) == content(index) - {image.layers[0]} | {image.digest}
    result = await cache.engine.control.commands.purge.image(ImageName.parse(f"app@{image.digest}"))
    assert stored(cache) == {index.digest}
    assert result["tags"] == []
    result = await cache.engine.control.commands.purge.content(Digest.parse(index.digest))
    assert stored(cache) == set()
    assert result["tags"] == ["app:1"]
    hub.stop()
    assert await status_of(cache, "1") == 503


@pytest.mark.parametrize("name", ["app:2", "other:1", f"app@{Digest.of(b'')}"])
async def test_image_that_is_not_stored_cannot_be_purged(cache: Cache, hub: Hub, name: str) -> None:
    await pull(cache, hub.image(REPO, "1", layers=[random_bytes(99)]), "1")
    with pytest.raises(NotKnown, match="not stored"):
        await cache.engine.control.commands.purge.image(ImageName.parse(name))
    with pytest.raises(NotKnown, match="not stored"):
        await cache.engine.control.commands.purge.content(Digest.of(b"no content"))


async def test_client_that_reads_purged_content_receives_all_of_it(cache: Cache, hub: Hub) -> None:
    data = random_bytes(3 << 20)
    image = hub.image(REPO, "1", layers=[data])
    await pull(cache, image, "1")
    path = f"/v2/{REPO}/blobs/{image.layers[0]}"
    answer = await cache.engine.answer(cache.request(Listener.MIRROR, "GET", path))
    assert isinstance(answer, Answer)
    result = await cache.engine.control.commands.purge.image(APP)
    assert result["being_read"] == [image.layers[0]]
    assert await read(answer) == data
    assert cache.engine.store.usage.on_disk == 0


async def test_blob_that_is_being_fetched_is_reported_and_stored(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(3 << 20)])
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1 << 20))
    assert await status_of(cache, "1") == 200
    answer = await cache.engine.answer(cache.request(Listener.MIRROR, "GET", f"/v2/{REPO}/blobs/{image.layers[0]}"))
    result = await cache.engine.control.commands.purge.image(APP)
    assert result["being_fetched"] == [image.layers[0]]
    hub.faults.remove(fault)
    assert isinstance(answer, Answer)
    assert len(await read(answer)) == 3 << 20
    await asyncio.gather(*cache.engine.fills._tasks)
    assert stored(cache) == {image.layers[0]}


async def test_content_that_another_command_holds_stays_and_is_reported(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    await pull(cache, image, "1")
    commands = cache.engine.control.commands
    commands.content.keep([Digest.parse(image.layers[0])])  # as an export does
    result = await commands.purge.image(APP)
    assert result["held"] == [image.layers[0]]
    assert stored(cache) == {image.layers[0]}
    commands.content.close()
    result = await commands.purge.content(Digest.parse(image.layers[0]))
    assert (result["removed"], result["held"]) == ([image.layers[0]], [])


async def test_requests_are_remembered_after_a_purge(cache: Cache, hub: Hub) -> None:
    """A full store must not refuse content that was popular before it was purged."""
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    await pull(cache, image, "1")
    cache.engine.store.popularity.ensure_admitted(Digest.parse(image.layers[0]))
    await cache.engine.control.commands.purge.image(APP)
    assert cache.engine.store.popularity.is_admitted(Digest.parse(image.layers[0]))


async def test_purge_invalidates_cached_answers(cache: Cache, hub: Hub) -> None:
    await pull(cache, hub.image(REPO, "1", layers=[random_bytes(99)]), "1")
    changes: list[None] = []
    cache.engine.on_change(lambda: changes.append(None))
    await cache.engine.control.commands.purge.image(APP)
    assert changes


async def test_purge_forgets_the_registries_of_private_content(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    cache, own = cache_with_secret, bearer(hub, "alice", SECRET)
    digest, private = Digest.parse(secret.digest), cache_with_secret.engine.store.private
    assert private.sources(digest) == {HUB_HOST}
    await cache.engine.control.commands.purge.image(ImageName.parse(f"{SECRET}:1"))
    assert stored(cache) == set()
    assert private.sources(digest) == frozenset()
    assert set(await pull_with(cache, secret, authorization=own)) == {200}
    await asyncio.gather(*cache.engine.fills._tasks)
    assert private.sources(digest) == {HUB_HOST}
    assert (await cache.get(Listener.PROXY, f"/v2/{SECRET}/manifests/1"))[0] == 401


async def test_forgotten_facts_of_private_content_expire_unless_it_is_stored_again(
    cache_with_secret: Cache, secret: Image
) -> None:
    store = cache_with_secret.engine.store
    await cache_with_secret.engine.control.commands.purge.image(ImageName.parse(f"{SECRET}:1"))
    assert isinstance(store.private, PrivateContent)
    expiring = {key for key, _ in store.index.opened().expiring(2 * 86400.0)}
    assert {f"private/{digest}" for digest in content(secret)} <= expiring
