"""The images that are pulled most, by day, in rows of the store that survive a restart."""

import json
from pathlib import Path

import pytest
from hubcache.oci.registry import HUB_HOST
from hubcache.operate.history import History
from hubcache.operate.image_counts import DAYS, MAX_IMAGES, ImageCounts
from hubcache.operate.pull import Pull
from hubcache.operate.traffic import Traffic
from support.stores import opened_store

NOW = 1_800_000_000.0
DAY = 86400.0


def pull(image: str, sent: int = 100, result: str = "hit") -> Pull:
    return Pull("10.0.0.7", "proxy", image, HUB_HOST, f"library/{image.split(':')[0]}", NOW, sent=sent, result=result)


def top(images: ImageCounts, now: float = NOW, count: int = 10) -> list[tuple[str, int, int]]:
    return [(image.name, pulls, sent) for image, pulls, sent in images.top(now, count)]


def test_images_are_in_the_order_of_their_pulls() -> None:
    images = ImageCounts()
    for name, count in (("debian:12", 2), ("alpine:3", 5), ("redis:7", 1)):
        for _ in range(count):
            images.add(pull(name), NOW)
    assert top(images, count=2) == [("alpine:3", 5, 500), ("debian:12", 2, 200)]


def test_failed_pulls_and_endless_names_do_not_count() -> None:
    images = ImageCounts()
    images.add(pull("debian:12", result="failed"), NOW)
    images.add(pull("x" * 1000), NOW)
    assert top(images) == []
    assert images.changed == set()


def test_old_pulls_do_not_count() -> None:
    images = ImageCounts()
    for age in (0, 1, DAYS - 1, DAYS, DAYS + 1):
        images.add(pull("debian:12"), NOW - age * DAY)
    assert top(images) == [("debian:12", 3, 300)]
    assert top(images, NOW + DAYS * DAY) == []


def test_pulls_before_a_clock_was_set_back_do_not_count_until_their_day() -> None:
    images = ImageCounts()
    images.add(pull("debian:12"), NOW + DAY)
    assert top(images) == []
    assert top(images, NOW + DAY) == [("debian:12", 1, 100)]


def test_number_of_images_is_bounded_and_popular_ones_stay() -> None:
    images = ImageCounts()
    for _ in range(2):
        images.add(pull("debian:12"), NOW)
    for number in range(MAX_IMAGES + 100):
        images.add(pull(f"app:{number}"), NOW + number)
    assert len(top(images, NOW, 10_000)) == MAX_IMAGES
    assert top(images)[0] == ("debian:12", 2, 200)
    assert images.changed == set(range(MAX_IMAGES))


async def test_counts_survive_a_restart(tmp_path: Path) -> None:
    first, second = History(Traffic()), History(Traffic())
    async with opened_store(tmp_path) as store:
        for name in ("debian:12", "alpine:3", "alpine:3"):
            first.images.add(pull(name), NOW)
        await first.save(store.index)
        assert first.images.changed == set()
    async with opened_store(tmp_path) as store:
        second.images.add(pull("redis:7"), NOW)
        second.images.add(pull("alpine:3"), NOW + DAY)
        await second.save(store.index)
        await second.save(store.index)
    third = History(Traffic())
    async with opened_store(tmp_path) as store:
        await third.save(store.index)
    for history in (second, third):
        assert dict((name, pulls) for name, pulls, _ in top(history.images, NOW + DAY)) == {
            "alpine:3": 3,
            "debian:12": 1,
            "redis:7": 1,
        }


@pytest.mark.parametrize(
    "row",
    [
        *("", "[]", "null", '["a", "b", "c", 1]', '["a", "b", 1, 1, []]', '["a", "b", "c", Infinity, []]', b"bytes"),
        *(f'["a", "b", "c", 1, {days}]' for days in ("[[NaN, [1, 1]]]", "[[1, [1]]]", "[[1, 1]]", "[[1, [1, 1e9]]]")),
        json.dumps(["a" * 1000, "b", "c", 1, []]),
    ],
)
async def test_damaged_row_counts_nothing(tmp_path: Path, row: object) -> None:
    history = History(Traffic())
    async with opened_store(tmp_path) as store:
        assert store.index.current is not None
        store.index.current.set("history/image/0", row)
        history.images.add(pull("debian:12"), NOW)
        await history.save(store.index)
    assert top(history.images) == [("debian:12", 1, 100)]
