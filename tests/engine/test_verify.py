"""Verification of all stored content by a command, and its repair."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.control.errors import Refused
from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from hubcache.serve.messages import Listener
from support.damage import change_rows, damage_manifest, flip_bit
from support.engine import Cache, running
from support.standin import Fault, Hub, Image, random_bytes
from support.users import SECRET, bearer
from support.users import pull as pull_with

REPO = "library/app"
LAYER = random_bytes(3_000_000)


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store") as running_cache:
        yield running_cache


@pytest.fixture
async def image(cache: Cache, hub: Hub) -> Image:
    """A pulled image with one layer."""
    image = hub.image(REPO, "1", layers=[LAYER])
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
    for digest in image.blobs:
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{digest}"))[0] == 200
    await asyncio.gather(*cache.engine.fills._tasks)
    hub.reset_log()
    return image


async def verify(cache: Cache, *, repair: bool = False) -> tuple[dict[str, tuple[str, str]], dict[str, Any]]:
    """Return state and error of each object, and the last event; checks that the events are JSON."""
    events = [event async for event in cache.engine.control.commands.verify.run(repair=repair)]
    json.dumps(events)
    assert events[0]["begin"]
    assert events[-1]["done"]
    states = {event["digest"]: (str(event["state"]), event.get("error", "")) for event in events if "state" in event}
    assert events[-1]["objects"] == len(states)
    return states, events[-1]


def file_of(cache: Cache, digest: str) -> Path:
    """Return the file of a blob."""
    path = cache.engine.store.blob_path(Digest.parse(digest))
    assert path is not None
    return path


async def test_all_content_is_verified(cache: Cache, image: Image) -> None:
    states, last = await verify(cache)
    assert states == dict.fromkeys((image.digest, *image.blobs), ("good", ""))
    assert (last["good"], last["damaged"], last["bytes"] > len(LAYER)) == (3, 0, True)


async def test_damaged_and_missing_content_is_reported_and_removed(cache: Cache, image: Image) -> None:
    flip_bit(file_of(cache, image.layers[0]))
    file_of(cache, image.config).unlink()
    damage_manifest(cache.engine.store.directory)
    states, last = await verify(cache)
    assert states[image.layers[0]] == ("damaged", "does not match its digest")
    assert states[image.digest] == ("damaged", "does not match its digest")
    assert states[image.config] == ("missing", "its file is missing")
    assert (last["damaged"], last["missing"], last["good"]) == (2, 1, 0)
    assert cache.engine.store.usage.sizes == {}
    assert cache.engine.store.damage.count == 3


async def test_missing_row_is_reported(cache: Cache, image: Image) -> None:
    change_rows(
        cache.engine.store.directory, "DELETE FROM Cache WHERE key LIKE 'manifest/%' OR key = ?", f"blob/{image.config}"
    )
    states, _ = await verify(cache)
    assert states[image.digest] == states[image.config] == ("missing", "its row is missing")
    assert set(cache.engine.store.usage.sizes) == {image.layers[0]}


async def test_damage_is_repaired_from_the_registry(cache: Cache, hub: Hub, image: Image) -> None:
    flip_bit(file_of(cache, image.layers[0]))
    file_of(cache, image.config).unlink()
    damage_manifest(cache.engine.store.directory)
    states, last = await verify(cache, repair=True)
    assert states == dict.fromkeys((image.digest, *image.blobs), ("repaired", ""))
    assert last["repaired"] == 3
    hub.stop()
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{image.layers[0]}")) == (200, LAYER)
    assert (await verify(cache))[1]["good"] == 3


async def test_damage_that_was_found_earlier_is_repaired(hub: Hub, tmp_path: Path) -> None:
    """A user verifies first, and repairs when that reports damage."""
    async with running(hub, tmp_path / "store") as cache:
        image = hub.image(REPO, "1", layers=[LAYER])
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
        assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{image.layers[0]}"))[0] == 200
        await asyncio.gather(*cache.engine.fills._tasks)
        flip_bit(file_of(cache, image.layers[0]))
        assert (await verify(cache))[1]["damaged"] == 1
    async with running(hub, tmp_path / "store") as cache:
        assert (await verify(cache))[1]["objects"] == 1
        states, _ = await verify(cache, repair=True)
        assert states[image.layers[0]] == ("repaired", "")
        assert (await verify(cache, repair=True))[1]["repaired"] == 0


async def test_content_that_a_client_fetched_again_is_not_repaired(cache: Cache, hub: Hub, image: Image) -> None:
    flip_bit(file_of(cache, image.layers[0]))
    await verify(cache)
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{image.layers[0]}"))[0] == 200
    await asyncio.gather(*cache.engine.fills._tasks)
    hub.reset_log()
    assert (await verify(cache, repair=True))[1]["good"] == 3
    assert hub.count() == 0


async def test_content_that_the_registry_no_longer_has_is_not_repairable(cache: Cache, hub: Hub, image: Image) -> None:
    flip_bit(file_of(cache, image.layers[0]))
    del hub.memory.repository(REPO).blobs[image.layers[0]]
    states, last = await verify(cache, repair=True)
    assert states[image.layers[0]][0] == "not repairable"
    assert f"{REPO}: " in states[image.layers[0]][1]
    assert last["not_repairable"] == 1
    assert (await verify(cache, repair=True))[1]["not_repairable"] == 0  # another attempt would be in vain


async def test_repair_is_attempted_again_after_an_outage(cache: Cache, hub: Hub, image: Image) -> None:
    flip_bit(file_of(cache, image.layers[0]))
    fault = hub.faults.add(Fault(kind="blob", status=503))
    states, _ = await verify(cache, repair=True)
    assert states[image.layers[0]][0] == "not repairable"
    hub.faults.remove(fault)
    cache.engine.breakers.circuits.clear()
    states, _ = await verify(cache, repair=True)
    assert states[image.layers[0]] == ("repaired", "")


async def test_content_that_no_repository_is_known_to_have_is_not_repairable(cache: Cache, image: Image) -> None:
    flip_bit(file_of(cache, image.layers[0]))
    change_rows(cache.engine.store.directory, "DELETE FROM Cache WHERE key LIKE 'link/%'")
    states, _ = await verify(cache, repair=True)
    assert states[image.layers[0]][0] == "not repairable"
    assert "no repository" in states[image.layers[0]][1]


async def test_another_repository_is_tried(cache: Cache, hub: Hub, image: Image) -> None:
    other = hub.image("library/other", "1", layers=[LAYER])
    assert (await cache.get(Listener.MIRROR, "/v2/library/other/manifests/1"))[0] == 200
    assert (await cache.get(Listener.MIRROR, f"/v2/library/other/blobs/{other.layers[0]}"))[0] == 200
    del hub.memory.repository(REPO).blobs[image.layers[0]]
    flip_bit(file_of(cache, image.layers[0]))
    states, _ = await verify(cache, repair=True)
    assert states[image.layers[0]] == ("repaired", "")


async def test_private_content_is_not_repairable_and_says_so(cache_with_secret: Cache, hub: Hub, secret: Image) -> None:
    flip_bit(file_of(cache_with_secret, secret.layers[0]))
    states, _ = await verify(cache_with_secret, repair=True)
    state, error = states[secret.layers[0]]
    assert state == "not repairable"
    assert "private" in error
    assert hub.count() == 0
    own = bearer(hub, "alice", SECRET)
    assert set(await pull_with(cache_with_secret, secret, authorization=own)) == {200}


async def test_second_verification_is_refused(cache: Cache, image: Image) -> None:
    first = cache.engine.control.commands.verify.run(repair=False)
    assert (await anext(first))["begin"]
    with pytest.raises(Refused, match="running"):
        await anext(cache.engine.control.commands.verify.run(repair=False))
    await first.aclose()
    assert (await verify(cache))[1]["good"] == 3


async def test_content_that_is_removed_during_the_verification_is_not_reported(cache: Cache, image: Image) -> None:
    run = cache.engine.control.commands.verify.run(repair=False)
    assert (await anext(run))["objects"] == 3
    await cache.engine.control.commands.purge.image(ImageName.parse("app:1"))
    assert [event["objects"] async for event in run] == [0]


async def test_clients_are_served_during_a_verification(cache: Cache, image: Image) -> None:
    run = cache.engine.control.commands.verify.run(repair=False)
    async for event in run:
        if event.get("state"):
            assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
