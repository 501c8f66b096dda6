"""Pins that were added while the program ran."""

from pathlib import Path

from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from support.damage import change_rows
from support.stores import opened_store

APP, BASE = ImageName.parse("app:1"), ImageName.parse(f"ghcr.io/o/base@{Digest.of(b'x')}")


async def test_added_pins_survive_a_restart(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        assert await store.pins.add(APP)
        assert await store.pins.add(BASE)
        assert not await store.pins.add(APP)
    async with opened_store(tmp_path) as store:
        assert set(store.pins) == {APP, BASE}
        assert await store.pins.remove(APP)
        assert not await store.pins.remove(APP)
    async with opened_store(tmp_path) as store:
        assert set(store.pins) == {BASE}


async def test_pin_of_the_option_is_not_written(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        store.pins.configured = (APP,)
        assert not await store.pins.add(APP)
        assert not await store.pins.remove(APP)
        assert list(store.pins) == [APP]
    async with opened_store(tmp_path) as store:
        assert list(store.pins) == []


async def test_damaged_row_of_a_pin_is_ignored(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await store.pins.add(APP)
        await store.pins.add(BASE)
    change_rows(tmp_path, "UPDATE Cache SET value = '[1]' WHERE key LIKE 'pin/ghcr.io%'")
    async with opened_store(tmp_path) as store:
        assert list(store.pins) == [APP]
