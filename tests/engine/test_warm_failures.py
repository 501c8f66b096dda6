"""Images that the operator asks for and that cannot be fetched, or do not fit into the store."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Answer, Listener
from support.control import call
from support.engine import Cache, running
from support.standin import Fault, Hub, Image, random_bytes
from support.stores import MIB
from support.users import pull
from support.warming import LAYER, assert_pulled_without_upstream, fill, warm, warm_image_fixture

image = warm_image_fixture()
pytestmark = pytest.mark.usefixtures("short_times")


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
