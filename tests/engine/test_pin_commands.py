"""Pins that commands add and remove."""

from pathlib import Path

import pytest
from hubcache.control.errors import InvalidCommand, NotKnown, Refused
from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from hubcache.serve.messages import Listener
from support.engine import running
from support.standin import Hub, random_bytes

APP = ImageName.parse("app:1")


async def test_pinned_image_is_protected_from_eviction_until_it_is_unpinned(hub: Hub, tmp_path: Path) -> None:
    image = hub.image("library/app", "1")
    async with running(hub, tmp_path / "store") as cache:
        pins, usage = cache.engine.control.commands.pins, cache.engine.store.usage
        assert (await cache.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 200
        answer = await pins.pin(APP)
        assert (answer["image"], answer["changed"], answer["stored"]) == ("app:1", True, True)
        assert usage.is_protected(Digest.of(image.manifest))
        assert (await pins.pin(APP))["changed"] is False
        assert (await pins.unpin(APP))["pinned"] is False
        assert not usage.is_protected(Digest.of(image.manifest))


async def test_image_that_is_not_stored_is_kept_once_it_is(hub: Hub, tmp_path: Path) -> None:
    data = random_bytes(1000)
    image = hub.image("library/app", "1", layers=[data])
    async with running(hub, tmp_path / "store") as cache:
        answer = await cache.engine.control.commands.pins.pin(APP)
        assert answer["stored"] is False
        assert "not stored" in answer["message"]
    async with running(hub, tmp_path / "store") as cache:
        assert (await cache.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 200
        await cache.engine.store.maintain()
        assert cache.engine.store.usage.is_protected(Digest.of(image.manifest))


async def test_pin_of_the_option_is_not_removed(hub: Hub, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store", pins=(APP,)) as cache:
        with pytest.raises(Refused, match="hubcache_pins"):
            await cache.engine.control.commands.pins.unpin(APP)


async def test_image_that_is_not_pinned_cannot_be_unpinned(hub: Hub, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store") as cache:
        with pytest.raises(NotKnown):
            await cache.engine.control.commands.pins.unpin(APP)


async def test_image_of_a_registry_that_is_not_cached_cannot_be_pinned(hub: Hub, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store") as cache:
        with pytest.raises(InvalidCommand, match="hubcache_registries"):
            await cache.engine.control.commands.pins.pin(ImageName.parse("ghcr.io/o/n:1"))
