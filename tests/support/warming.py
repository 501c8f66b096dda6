"""An image, and the command that fetches it into the store of a cache."""

from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener

from support.control import call
from support.engine import Cache
from support.standin import Hub, Image, random_bytes
from support.stores import MIB, put_blob
from support.users import pull

LAYER = 300_000


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


async def fill(cache: Cache) -> list[Digest]:
    """Fill the store with blobs that clients request often."""
    blobs = [await put_blob(cache.engine.store, random_bytes(2 * MIB, name)) for name in "pq"]
    for blob in blobs:
        for _ in range(20):
            cache.engine.store.popularity.count_request(blob)
    return blobs


def warm_image_fixture() -> Any:
    """Return the fixture `image`, which the registry has."""

    @pytest.fixture
    def image(hub: Hub) -> Image:
        return hub.image("library/app", "1", [random_bytes(LAYER, "a"), random_bytes(1000, "b")])

    return image
