"""Images that the operator asks for are fetched into the store, and the command reports what happened."""

import asyncio

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from hubcache.serve.messages import Listener
from support.engine import Cache
from support.engine29 import attested
from support.standin import Fault, Hub, Image, random_bytes
from support.users import EACH_LISTENER, pull, until
from support.warming import LAYER, assert_pulled_without_upstream, events_of, warm, warm_image_fixture

image = warm_image_fixture()
pytestmark = pytest.mark.usefixtures("short_times")


@EACH_LISTENER
async def test_warm_image_is_pulled_without_the_registry(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    done, [event] = await warm(cache, "app:1")
    assert (done["stored"], done["failed"], done["skipped"]) == (1, 0, 0)
    assert (event["state"], event["digest"], event["error"]) == ("stored", image.digest, None)
    sizes = cache.engine.store.usage.sizes
    assert done["received"] == event["received"] == event["size"] == sum(sizes[Digest(each)] for each in image.blobs)
    assert done["upstream_requests"] == hub.count() > 0
    await assert_pulled_without_upstream(cache, hub, image, listener)


async def test_second_warm_downloads_nothing(cache: Cache, hub: Hub, image: Image) -> None:
    await warm(cache, "app:1")
    hub.reset_log()
    done, [event] = await warm(cache, "app:1")
    assert (event["state"], event["received"], done["received"]) == ("stored", 0, 0)
    assert hub.count(kind="manifest", method="HEAD") > 0
    assert hub.count(kind="manifest", method="GET") == hub.count(kind="blob") == 0


async def test_progress_of_each_layer_is_reported(cache: Cache, hub: Hub, image: Image) -> None:
    fault = hub.faults.add(Fault(kind="cdn", path=f"*{image.layers[0].partition(':')[2]}*", pause_after=100_000))
    running_events = asyncio.create_task(events_of(cache, "app:1"))
    await until(lambda: any(fill.written for fill in cache.engine.fills.progress()))
    await asyncio.sleep(0.3)  # longer than the time between two reports
    hub.faults.remove(fault)
    events = [event for event in await running_events if event.get("digest") == image.layers[0]]
    assert [event["state"] for event in events][-1] == "stored"
    assert {event["state"] for event in events} >= {"running", "stored"}
    assert {event["size"] for event in events} == {LAYER}
    received = [event["received"] for event in events]
    assert received == sorted(received)
    assert received[-1] == LAYER
    assert any(0 < each < LAYER for each in received)


def multi(hub: Hub) -> Image:
    names = ("linux/amd64", "linux/arm64", "linux/arm/v7")
    images = {name: hub.image("library/multi", None, [name.encode() * 100], platform=name) for name in names}
    return hub.index("library/multi", "1", images)


async def test_only_the_wanted_platforms_are_fetched(cache: Cache, hub: Hub) -> None:
    index = multi(hub)
    _, [event] = await warm(cache, "multi:1", platforms=["linux/arm64/v8", "linux/arm"])
    assert event["state"] == "stored", event
    store = cache.engine.store
    stored = {name for name, image in index.images.items() if all(map(store.has, map(Digest, image.blobs)))}
    assert stored == {"linux/arm64", "linux/arm/v7"}
    assert not store.has(Digest(index.images["linux/amd64"].digest))
    await warm(cache, "multi:1")
    assert all(map(store.has, map(Digest, index.blobs)))


async def test_platform_that_the_image_does_not_have_is_an_error(cache: Cache, hub: Hub) -> None:
    multi(hub)
    done, [event] = await warm(cache, "multi:1", platforms=["linux/s390x"])
    assert done["failed"] == 1
    assert event["error"] == (
        "the image has no manifest for linux/s390x; it has linux/amd64, linux/arm64, linux/arm/v7"
    )


@EACH_LISTENER
async def test_referrers_are_fetched_with_the_image(cache: Cache, hub: Hub, image: Image, listener: Listener) -> None:
    hub.referrers = True
    sbom = hub.image("library/app", None, [b"sbom"], subject=image, artifact_type="application/spdx+json")
    cosign = f"{image.digest.replace(':', '-')}.sig"
    hub.image("library/app", cosign, [b"signature"])
    await warm(cache, "app:1")
    hub.stop()
    status, body = await cache.get(listener, f"/v2/library/app/referrers/{image.digest}")
    assert (status, sbom.digest.encode() in body) == (200, True)
    assert set(await pull(cache, sbom, listener)) == {200}
    assert (await cache.get(listener, f"/v2/library/app/manifests/{cosign}"))[0] == 200


async def test_attestations_are_fetched_with_their_platform(cache: Cache, hub: Hub) -> None:
    index = attested(hub)
    _, [event] = await warm(cache, f"{index.repo}:{index.tag}", platforms=["linux/amd64"])
    assert event["state"] == "stored"
    assert cache.engine.store.has(Digest(index.attestations["linux/amd64"].digest))


async def test_tag_refers_to_the_old_image_until_the_new_one_is_stored(cache: Cache, hub: Hub, image: Image) -> None:
    await pull(cache, image)
    moved = hub.image("library/app", "1", [random_bytes(LAYER, "moved")])
    fault = hub.faults.add(Fault(kind="cdn", pause_after=100_000))
    work = asyncio.create_task(warm(cache, "app:1"))
    await until(lambda: any(fill.written for fill in cache.engine.fills.progress()))
    assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1"))[1] == image.manifest
    hub.faults.remove(fault)
    _, [event] = await work
    assert event["digest"] == moved.digest
    assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1"))[1] == moved.manifest


async def test_image_is_fetched_by_digest(cache: Cache, hub: Hub, image: Image) -> None:
    _, [event] = await warm(cache, f"app@{image.digest}")
    assert event["state"] == "stored"
    assert cache.engine.store.tags.get("registry-1.docker.io", "library/app", "1") == {}


async def test_pin_keeps_the_image(cache: Cache, image: Image) -> None:
    await warm(cache, "app:1", keep=True)
    assert ImageName.parse("app:1") in tuple(cache.engine.store.pins)
    assert set(map(Digest, image.blobs)) <= cache.engine.store.usage.pinned


async def test_command_ends_when_its_client_disconnects(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubcache.control.warm._HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr("hubcache.control.warm._PARALLEL_IMAGES", 1)
    names = [f"library/app{n}" for n in range(3)]
    for name in names:
        hub.image(name, "1", [random_bytes(LAYER, name)])
    hub.faults.add(Fault(kind="cdn", pause_after=100_000))
    work = asyncio.create_task(events_of(cache, *(f"{name.removeprefix('library/')}:1" for name in names)))
    await until(lambda: any(fill.written for fill in cache.engine.fills.progress()))
    assert cache.engine.store.usage.held
    work.cancel()
    await until(lambda: not cache.engine.store.usage.held)
    hub.faults.clear()
    await until(lambda: not cache.engine.fills.progress())
    assert hub.count(kind="manifest", path="*app2*") == 0


async def test_clients_get_slots_of_downloads_before_the_command(cache: Cache, hub: Hub) -> None:
    """The reserved slots are never given to the command, so that a client waits for no layer of it."""
    layers = [random_bytes(LAYER, str(n)) for n in range(12)]
    hub.image("library/app", "1", layers)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=100_000))
    work = asyncio.create_task(warm(cache, "app:1"))
    await until(lambda: len(cache.engine.fills.progress()) == 8)
    assert cache.engine.fills._slots._held == {"prefetch": 8}
    hub.faults.remove(fault)
    _, [event] = await work
    assert event["state"] == "stored"
