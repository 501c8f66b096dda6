"""Attestations of an image are fetched, offered and pinned with it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hubcache.decide.records import ManifestRecord, ReferrersRecord, TagRecord
from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from hubcache.oci.media import OCI_INDEX
from hubcache.oci.registry import HUB_HOST
from hubcache.serve.messages import Answer, Listener
from support import engine29
from support.engine import Cache, read, running
from support.engine29 import ACTIONS, REPO, attested
from support.standin import Hub, Image
from support.stores import opened_store, put_image
from support.tag_refresh import TTL, popular, running_with_manual_ticks, tick
from support.users import EACH_LISTENER, Clock, pull, settled, until

AMD64 = "docker/29.0.0 go/go1.25 os/linux arch/amd64 UpstreamClient(Docker-Client/29.0.0)"


@pytest.fixture
async def stored_only(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    """A mirror that serves stored content only."""
    async with running(hub, tmp_path / "store", offer_only=True) as started:
        yield started


async def statuses(cache: Cache, index: Image, action: str, listener: Listener, client: str = "10.0.0.1") -> list[int]:
    """Return the statuses of the answers to the requests of a Docker Engine, in order."""
    found = []
    for one in engine29.recorded_requests(action, index):
        headers = {name.replace("-", "_"): value for name, value in one.headers.items()}
        request = cache.request(
            listener, one.method, one.path if listener is Listener.MIRROR else one.at_registry, **headers
        )
        answer = await cache.engine.answer(replace(request, client=client))
        assert isinstance(answer, Answer)
        await read(answer)
        found.append(answer.status)
    await settled(cache)
    return found


def expected(index: Image, action: str) -> list[int]:
    return [one.expected for one in engine29.recorded_requests(action, index)]


async def fetch_into_mirror(cache: Cache, index: Image) -> None:
    """Request an image until the mirror has fetched it."""
    for client in ("10.0.0.1", "10.0.0.2"):
        assert (await statuses(cache, index, "pull", Listener.MIRROR, client))[0] == 404
        await until(lambda: not cache.engine._mirror._fetching)


@EACH_LISTENER
async def test_prefetched_image_needs_no_upstream_requests(hub: Hub, tmp_path: Path, listener: Listener) -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with running_with_manual_ticks(hub, tmp_path / "store") as cache:
            clock = Clock(patch, cache)
            old = hub.index(REPO, "latest", {"linux/amd64": hub.image(REPO, None, [b"old"])}, attested=True)
            await popular(cache, replace(old, config=old.images["linux/amd64"].config))
            await pull(cache, old.images["linux/amd64"])
            index = attested(hub)
            clock.ahead = TTL - 1
            await tick(cache)
            hub.reset_log()
            for action in ACTIONS:
                assert await statuses(cache, index, action, listener) == expected(index, action)
            assert hub.count() == 0


@pytest.mark.parametrize("action", ACTIONS)
async def test_stored_only_mirror_needs_no_upstream_requests(stored_only: Cache, hub: Hub, action: str) -> None:
    index = attested(hub)
    await fetch_into_mirror(stored_only, index)
    hub.reset_log()
    assert await statuses(stored_only, index, action, Listener.MIRROR) == expected(index, action)
    assert hub.count() == 0


async def test_only_attestations_of_the_requested_platform_are_fetched(stored_only: Cache, hub: Hub) -> None:
    images = {name: hub.image(REPO, None, [name.encode()], platform=name) for name in ("linux/amd64", "linux/arm64")}
    index = hub.index(REPO, "latest", images, attested=True)
    for client in ("10.0.0.1", "10.0.0.2"):
        request = stored_only.request(Listener.MIRROR, "GET", f"/v2/{REPO}/manifests/latest", user_agent=AMD64)
        await stored_only.engine.answer(replace(request, client=client))
    await until(lambda: not stored_only.engine._mirror._fetching)
    store = stored_only.engine.store
    assert store.has(Digest.parse(index.attestations["linux/amd64"].layers[0]))
    assert not store.has(Digest.parse(index.attestations["linux/arm64"].digest))


@pytest.mark.parametrize("part", ["manifest", "layer"])
async def test_image_without_its_attestation_is_not_offered(stored_only: Cache, hub: Hub, part: str) -> None:
    index = attested(hub)
    await fetch_into_mirror(stored_only, index)
    attestation = index.attestations["linux/amd64"]
    await stored_only.engine.store.remove(
        Digest.parse(attestation.digest if part == "manifest" else attestation.layers[0])
    )
    assert (await statuses(stored_only, index, "pull", Listener.MIRROR))[0] == 404
    await until(lambda: not stored_only.engine._mirror._fetching)


async def test_referrers_of_an_attestation_are_fetched_with_it(stored_only: Cache, hub: Hub) -> None:
    hub.referrers = True
    index = attested(hub)
    signature = hub.image(REPO, None, [b"signed"], subject=index.attestations["linux/amd64"], artifact_type="sig")
    await fetch_into_mirror(stored_only, index)
    hub.reset_log()
    for path in (f"manifests/{signature.digest}", f"blobs/{signature.layers[0]}"):
        assert (await stored_only.get(Listener.MIRROR, f"/v2/{REPO}/{path}"))[0] == 200
    assert hub.count() == 0


async def test_image_is_offered_when_its_referrers_cannot_be_fetched(stored_only: Cache, hub: Hub) -> None:
    hub.referrers = True
    index = attested(hub)
    lost = hub.image(REPO, None, [b"signed"], subject=index.attestations["linux/amd64"], artifact_type="sig")
    hub.memory.repository(REPO).blobs.pop(lost.layers[0])
    await fetch_into_mirror(stored_only, index)
    assert (await statuses(stored_only, index, "pull", Listener.MIRROR))[0] == 200


@pytest.mark.parametrize("what", ["referrers/{}", "manifests/{}"])
async def test_stored_only_mirror_makes_no_upstream_requests_for_referrers(
    stored_only: Cache, hub: Hub, what: str
) -> None:
    image = hub.image(REPO, "latest")
    name = image.digest if what.startswith("referrers") else image.digest.replace(":", "-")
    for client in range(4):
        request = stored_only.request(Listener.MIRROR, "GET", f"/v2/{REPO}/{what.format(name)}")
        answer = await stored_only.engine.answer(replace(request, client=f"10.0.0.{client}"))
        assert isinstance(answer, Answer)
        assert answer.status == 404
    assert hub.count() == 0


async def test_referrers_of_a_pinned_image_are_pinned_with_it(tmp_path: Path) -> None:
    """They may be in a listing or at a tag made from the digest, and their layers are pinned, too; referrers of other
    images are not."""
    async with opened_store(tmp_path) as store:
        image, layers = await put_image(store, b"layer")
        listed, listed_layers = await put_image(store, b"sbom", note="sbom")
        tagged, tagged_layers = await put_image(store, b"signed", note="signature")
        other, _ = await put_image(store, b"other", note="other")
        body = f'{{"manifests": [{{"digest": "{listed}", "size": 1}}]}}'.encode()
        listing = Digest.of(body)
        await store.put_manifest(listing, ManifestRecord(OCI_INDEX, body))
        store.pins.configured = (ImageName.parse("base:1"),)
        repository = (HUB_HOST, "library/base")
        await store.tags.put(*repository, "1", "*/*", TagRecord(image, "", 1, 0.0))
        await store.maintain()
        assert store.usage.pinned == {image, *layers}
        await store.tags.put_referrers(*repository, image, "question", ReferrersRecord(listing, 0.0))
        await store.tags.put_referrers(*repository, other, "question", ReferrersRecord(other, 0.0))
        await store.tags.put_referrers(*repository, image, "another", ReferrersRecord(None, 0.0))
        await store.tags.put(*repository, f"{image.replace(':', '-')}.sig", "*/*", TagRecord(tagged, "", 1, 0.0))
        await store.maintain()
        known = {listing, listed, *listed_layers, tagged, *tagged_layers}
        assert store.usage.pinned == {image, *layers, *known}
        await store.tags.drop_referrers(*repository, image)
        await store.maintain()
        assert store.usage.pinned == {image, *layers, tagged, *tagged_layers}
