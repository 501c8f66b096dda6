"""Images that the operator asks for are fetched into the store, and the command reports what happened."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from hubcache.serve.messages import Answer, Listener
from support.control import call
from support.engine import Cache, running
from support.engine29 import attested
from support.standin import Fault, Hub, Image, random_bytes
from support.stores import MIB, put_blob
from support.users import EACH_LISTENER, pull, until

LAYER = 300_000


pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image("library/app", "1", [random_bytes(LAYER, "a"), random_bytes(1000, "b")])


async def events_of(cache: Cache, *images: str, **fields: Any) -> list[dict[str, Any]]:
    """Run the command; return its events."""
    body = {"images": list(images), **fields}
    status, events = await call(cache.settings.directory, "POST", "/v1/warm", body)
    assert status == 200, events
    return list(events)


async def warm(cache: Cache, *images: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the command; return its last event, and the last events about each image, in order."""
    events = await events_of(cache, *images, **fields)
    last = {event["image"]: event for event in events if event.get("kind") == "image"}
    return events[-1], [last[name] for name in dict.fromkeys(images)]


async def assert_pulled_without_upstream(
    cache: Cache, hub: Hub, image: Image, listener: Listener = Listener.MIRROR
) -> None:
    hub.stop()
    assert set(await pull(cache, image, listener)) == {200}
    hub.start()
    cache.engine.breakers.circuits.clear()


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


# -- platforms -------------------------------------------------------------------------------------------------------


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


# -- tags ------------------------------------------------------------------------------------------------------------


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


# -- failures --------------------------------------------------------------------------------------------------------


async def test_cost_of_the_rate_limit_is_reported(cache: Cache, hub: Hub, image: Image) -> None:
    hub.limit(50)
    done, _ = await warm(cache, "app:1")
    assert done["ratelimit"] == [{"registry": "registry-1.docker.io", "before": 50, "after": 49}]


async def test_rate_limit_that_is_used_up_ends_the_rest(cache: Cache, hub: Hub, image: Image) -> None:
    others = [hub.image(f"library/other{n}", "1", [random_bytes(1000, str(n))]) for n in range(8)]
    hub.limit(3)
    names = ["app:1", *(f"{each.repo.removeprefix('library/')}:1" for each in others)]
    done, events = await warm(cache, *names)
    states = [event["state"] for event in events]
    assert (done["stored"], done["failed"]) == (states.count("stored"), states.count("failed")) == (3, 6)
    for event in events:
        if event["state"] == "failed":
            assert "the rate limit of registry-1.docker.io is used up; repeat the command in" in event["error"]
    assert done["ratelimit"][0]["after"] == 0


async def test_corrupt_layer_fails_its_image_and_the_rest_is_kept(cache: Cache, hub: Hub, image: Image) -> None:
    name = image.layers[0].partition(":")[2]
    hub.faults.add(Fault(kind="cdn", path=f"*{name}*", corrupt_at=1000))
    other = hub.image("library/other", "1", [b"other"])
    done, [event, stored] = await warm(cache, "app:1", "other:1")
    assert (event["state"], stored["state"], stored["digest"]) == ("failed", "stored", other.digest)
    assert "does not match its digest" in event["error"]
    assert done["failed"] == 1
    assert cache.engine.store.has(Digest(image.layers[1]))
    assert not cache.engine.store.has(Digest(image.layers[0]))
    hub.faults.clear()
    hub.reset_log()
    _, [event] = await warm(cache, "app:1")
    assert (event["state"], event["received"]) == ("stored", LAYER)
    assert hub.count(kind="cdn") == 1


async def test_registry_that_is_down_is_an_error_for_each_image(cache: Cache, hub: Hub, image: Image) -> None:
    hub.stop()
    done, events = await warm(cache, "app:1", "other:1")
    assert done["failed"] == 2
    assert all("cannot be reached" in event["error"] or "down" in event["error"] for event in events), events


async def test_private_image_is_an_error(cache: Cache, hub: Hub) -> None:
    secret = hub.image("alice/secret", "1", [b"secret"])
    hub.private("alice/secret", {"alice": "alice's"})
    done, [event] = await warm(cache, "alice/secret:1")
    assert done["failed"] == 1
    assert "the image is private or does not exist" in event["error"]
    assert not cache.engine.store.has(Digest(secret.digest))


async def test_unknown_tag_is_an_error(cache: Cache, image: Image) -> None:
    _, [event] = await warm(cache, "app:none")
    assert event["state"] == "failed"


async def test_image_of_another_registry_is_skipped(cache: Cache, hub: Hub, image: Image) -> None:
    done, events = await warm(cache, "ghcr.io/owner/name:1", "app:1")
    assert [event["state"] for event in events] == ["skipped", "stored"]
    assert events[0]["error"] == "this cache does not serve ghcr.io; add it to hubcache_registries"
    assert (done["skipped"], done["failed"], done["stored"]) == (1, 0, 1)


@pytest.mark.parametrize(
    "body",
    [
        {"images": []},
        {"images": "app:1"},
        {"images": ["In Valid"]},
        {"images": ["app:1"], "platforms": ["amd64"]},
        {"images": ["app:1"], "keep": 1},
        {"images": ["app:1"], "unknown": 1},
    ],
    ids=str,
)
async def test_malformed_command_is_refused(cache: Cache, hub: Hub, body: dict[str, Any]) -> None:
    status, answer = await call(cache.settings.directory, "POST", "/v1/warm", body)
    assert (status, set(answer)) == (400, {"error"})
    assert hub.count() == 0


# -- a full store ----------------------------------------------------------------------------------------------------


async def fill(cache: Cache) -> list[Digest]:
    """Fill the store with blobs that clients request often."""
    blobs = [await put_blob(cache.engine.store, random_bytes(2 * MIB, name)) for name in "pq"]
    for blob in blobs:
        for _ in range(20):
            cache.engine.store.popularity.count_request(blob)
    return blobs


@pytest.fixture
async def small(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    """A cache with space for somewhat less than 6 MiB of content."""
    async with running(hub, tmp_path / "store", size=8 * MIB) as started:
        yield started


async def test_full_store_makes_space_for_a_warm_image(small: Cache, hub: Hub) -> None:
    """It displaces content that is requested more often, which a new image of a client does not."""
    await fill(small)
    new = hub.image("library/new", "1", [random_bytes(3 * MIB, "new")])
    await pull(small, new)
    assert not small.engine.store.has(Digest(new.layers[0])), "a client's image is not admitted"
    _, [event] = await warm(small, "new:1")
    assert event["state"] == "stored", event
    await assert_pulled_without_upstream(small, hub, new)
    assert not small.engine.store.usage.held


async def test_image_that_does_not_fit_fails_before_its_layers_are_downloaded(small: Cache, hub: Hub) -> None:
    hub.image("library/large", "1", [random_bytes(3 * MIB, str(n)) for n in range(3)])
    popular = await fill(small)
    hub.reset_log()
    _, [event] = await warm(small, "large:1")
    assert event["state"] == "failed"
    assert "the image needs" in event["error"]
    assert "hubcache_size" in event["error"]
    assert hub.count(kind="blob") == 0
    assert all(map(small.engine.store.has, popular)), "nothing was removed for it"


async def test_images_of_one_command_do_not_displace_each_other(small: Cache, hub: Hub) -> None:
    for n in range(3):
        hub.image(f"library/part{n}", "1", [random_bytes(2 * MIB + n, f"part {n}")])
    done, events = await warm(small, "part0:1", "part1:1", "part2:1")
    assert (done["stored"], done["failed"]) == (2, 1)
    names = {event["image"].partition(":")[0] for event in events if event["state"] == "stored"}
    small.apply(offline=True, max_stale=float("inf"))
    for name in names:
        answer, _ = await small.ask(Listener.MIRROR, "GET", f"/v2/library/{name}/manifests/1")
        assert isinstance(answer, Answer)
        assert answer.status == 200


async def test_layer_above_max_blob_fails_before_it_is_downloaded(small: Cache, hub: Hub, image: Image) -> None:
    small.apply(max_blob=LAYER - 1)
    _, [event] = await warm(small, "app:1")
    assert "more than hubcache_max_blob allows" in event["error"]
    assert hub.count(kind="blob") == 0


# -- cancelled -------------------------------------------------------------------------------------------------------


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
