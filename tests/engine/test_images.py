"""The list of stored images, and one of them in detail."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.control.errors import NotKnown
from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from hubcache.serve.messages import Listener
from support.engine import Cache, running
from support.standin import Hub, random_bytes
from support.standin.content import Image

REPO = "library/app"


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store") as running_cache:
        yield running_cache


async def pull(cache: Cache, image: Image, reference: str, repo: str = REPO) -> None:
    """Pull an image without an index as clients do: the manifest, then its blobs."""
    assert (await cache.get(Listener.MIRROR, f"/v2/{repo}/manifests/{reference}"))[0] == 200
    for digest in image.blobs:
        assert (await cache.get(Listener.MIRROR, f"/v2/{repo}/blobs/{digest}"))[0] == 200
    await asyncio.gather(*cache.engine.fills._tasks)


async def listed(cache: Cache) -> dict[str, dict[str, Any]]:
    """Return the stored images by name; checks that they are JSON."""
    images = await cache.engine.control.commands.images.list()
    json.dumps(images)
    assert len({image["name"] for image in images}) == len(images)
    return {image["name"]: image for image in images}


async def test_empty_store_has_no_images(cache: Cache) -> None:
    assert await listed(cache) == {}


async def test_pulled_image_is_complete(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(5000), random_bytes(70, 1)])
    await pull(cache, image, "1")
    found = (await listed(cache))["app:1"]
    assert found["last_request"] is not None
    assert found["requests"] >= 1
    size = 5070 + len(image.manifest) + hub.memory.repository(REPO).blobs[image.config].size
    assert found | {"last_request": None, "requests": 1.0} == {
        **{"name": "app:1", "registry": "registry-1.docker.io", "repository": REPO, "tag": "1"},
        **{"digest": image.digest, "platforms": ["linux/amd64"], "complete_platforms": ["linux/amd64"]},
        **{"size": size, "stored_bytes": size, "complete": True, "pinned": False, "private": False},
        **{"requests": 1.0, "last_request": None},
    }


async def test_image_without_its_layers_is_not_complete(cache: Cache, hub: Hub) -> None:
    hub.image(REPO, "1", layers=[random_bytes(5000)])
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
    found = (await listed(cache))["app:1"]
    assert (found["complete"], found["complete_platforms"]) == (False, [])
    assert found["stored_bytes"] + 5000 < found["size"]


async def test_index_is_complete_when_the_platforms_that_were_pulled_are(cache: Cache, hub: Hub) -> None:
    images = {
        name: hub.image(REPO, None, layers=[random_bytes(99, name)], platform=name)
        for name in ("linux/amd64", "linux/arm/v7")
    }
    index = hub.index(REPO, "1", images)
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
    found = (await listed(cache))["app:1"]
    assert (found["platforms"], found["complete"], found["size"]) == ([], False, len(index.manifest))
    await pull(cache, images["linux/arm/v7"], images["linux/arm/v7"].digest)
    images_by_name = await listed(cache)
    found = images_by_name["app:1"]
    assert (found["platforms"], found["complete"]) == (["linux/arm/v7"], True)
    assert found["size"] == found["stored_bytes"] > len(index.manifest) + 99
    assert set(images_by_name) == {"app:1"}  # the platform's manifest is a part of it
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/{images['linux/amd64'].digest}"))[0] == 200
    found = (await listed(cache))["app:1"]
    assert sorted(found["platforms"]) == ["linux/amd64", "linux/arm/v7"]
    assert (found["complete_platforms"], found["complete"]) == (["linux/arm/v7"], False)


async def test_image_without_a_tag_is_listed_by_its_digest(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, None, layers=[random_bytes(99)])
    await pull(cache, image, image.digest)
    found = (await listed(cache))[f"app@{image.digest}"]
    assert (found["tag"], found["digest"], found["complete"]) == (None, image.digest, True)


async def test_previous_image_of_a_tag_is_listed_by_its_digest(cache: Cache, hub: Hub) -> None:
    cache.apply(tag_ttl=0.0)
    before = hub.image(REPO, "1", layers=[random_bytes(99)])
    await pull(cache, before, "1")
    after = hub.image(REPO, "1", layers=[random_bytes(99, 1)])
    await pull(cache, after, "1")
    images = await listed(cache)
    assert set(images) == {"app:1", f"app@{before.digest}"}
    assert images["app:1"]["digest"] == after.digest


async def test_pinned_image_that_is_not_stored_is_listed(cache: Cache, hub: Hub) -> None:
    await cache.engine.control.commands.pins.pin(ImageName.parse("o/n:1"))
    found = (await listed(cache))["o/n:1"]
    assert (found["pinned"], found["complete"], found["digest"], found["last_request"]) == (True, False, None, None)


async def test_pinned_image_is_marked(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    hub.memory.put_manifest(REPO, "2", image.manifest, image.media_type)
    await pull(cache, image, "1")
    await pull(cache, image, "2")
    await cache.engine.control.commands.pins.pin(ImageName.parse("app:1"))
    assert {name: image["pinned"] for name, image in (await listed(cache)).items()} == {"app:1": True, "app:2": True}


async def test_attestations_and_signatures_are_no_images(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, None, layers=[random_bytes(99)])
    index = hub.index(REPO, "1", {"linux/amd64": image}, attested=True)
    [attestation] = index.attestations.values()
    await pull(cache, index, "1")
    await pull(cache, image, image.digest)
    await pull(cache, attestation, attestation.digest)
    tag = f"sha256-{index.digest.partition(':')[2]}.sig"
    signature = hub.image(REPO, tag, layers=[b"signature"])
    await pull(cache, signature, tag)
    hub.referrers = True
    sbom = hub.image(REPO, None, layers=[b"sbom"], subject=index, artifact_type="application/spdx")
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/referrers/{index.digest}"))[0] == 200
    await pull(cache, sbom, sbom.digest)
    images = await listed(cache)
    assert set(images) == {"app:1"}
    assert images["app:1"]["complete"]
    shown = await cache.engine.control.commands.images.show(ImageName.parse("app:1"))
    referrers = {each["digest"]: (each["subject"], each["stored"]) for each in shown["referrers"]}
    assert referrers == {signature.digest: (index.digest, True), sbom.digest: (index.digest, True)}
    assert {each["attests"] for each in shown["manifests"]} == {None, image.digest}


async def test_shown_image_has_its_manifests_and_blobs(cache: Cache, hub: Hub) -> None:
    images = {
        name: hub.image(REPO, None, layers=[random_bytes(99, name)], platform=name)
        for name in ("linux/amd64", "linux/arm64")
    }
    hub.index(REPO, "1", images)
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
    await pull(cache, images["linux/arm64"], images["linux/arm64"].digest)
    shown = await cache.engine.control.commands.images.show(ImageName.parse("app:1"))
    json.dumps(shown)
    assert shown["fresh_until"] == pytest.approx(shown["validated"] + 600)
    manifests = {each["platform"]: each for each in shown["manifests"]}
    amd, arm = manifests["linux/amd64"], manifests["linux/arm64"]
    assert (amd["digest"], amd["stored"], amd["complete"], amd["blobs"]) == (
        images["linux/amd64"].digest,
        False,
        False,
        [],
    )
    assert (arm["stored"], arm["complete"]) == (True, True)
    assert [blob["digest"] for blob in arm["blobs"]] == list(images["linux/arm64"].blobs)
    assert [blob["size"] for blob in arm["blobs"]][1:] == [99]
    assert [blob["media_type"].rpartition("+")[0] for blob in arm["blobs"]] == [
        "application/vnd.oci.image.config.v1",
        "application/vnd.oci.image.layer.v1.tar",
    ]
    assert all(blob["stored"] for blob in arm["blobs"])


async def test_shown_image_without_an_index_has_a_platform(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)], platform="linux/arm64")
    await pull(cache, image, "1")
    for name in ("app:1", f"app@{image.digest}"):
        shown = await cache.engine.control.commands.images.show(ImageName.parse(name))
        assert (shown["platforms"], shown["manifests"][0]["platform"]) == (["linux/arm64"], "linux/arm64")


@pytest.mark.parametrize("name", ["app:2", "other:1", f"app@{Digest.of(b'')}"])
async def test_image_that_is_not_stored_is_not_shown(cache: Cache, hub: Hub, name: str) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    await pull(cache, image, "1")
    with pytest.raises(NotKnown, match="is not stored"):
        await cache.engine.control.commands.images.show(ImageName.parse(name))


async def test_digest_of_another_repository_is_not_shown(cache: Cache, hub: Hub) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)])
    await pull(cache, image, "1")
    with pytest.raises(NotKnown):
        await cache.engine.control.commands.images.show(ImageName.parse(f"other@{image.digest}"))


async def test_damaged_config_and_manifest_do_not_prevent_a_list(cache: Cache, hub: Hub, tmp_path: Path) -> None:
    image = hub.image(REPO, "1", layers=[random_bytes(99)], config=b"{" * 100)
    await pull(cache, image, "1")
    assert (await listed(cache))["app:1"]["platforms"] == []
    store = cache.engine.store
    path = store.blob_path(Digest.parse(image.config))
    assert path is not None
    path.unlink()
    assert (await listed(cache))["app:1"]["platforms"] == []
