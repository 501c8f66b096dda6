"""The scrub reads at its pace, at the required times, and gives way to other work."""

import os
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.store.file_check import PIECE, FileCheck
from hubcache.store.scrub import Scrub
from support.damage import flip_bit, mark_as_killed
from support.scrubs import FAST, files, scrubbing
from support.standin import random_bytes
from support.stores import MIB, opened_store, put_blob
from support.users import until


async def test_only_required_checks_are_made_without_a_pace(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        suspect, other = [await put_blob(store, random_bytes(10, number)) for number in range(2)]
        for path in files(tmp_path):
            flip_bit(path)
        store.inspector.require_check(suspect)
        async with scrubbing(store, rate=None):
            await until(lambda: store.damage.count)
        assert [store.has(digest) for digest in (suspect, other)] == [False, True]
        assert store.scrub_status.objects == 0


@pytest.mark.parametrize(
    ("rate", "period", "unclean", "speed", "within"),
    [
        (1000, None, False, 1000, 1000),
        (1000, None, True, 1000, 1000),
        (None, 100.0, False, (8 * MIB + 2 * (128 << 10)) / 100, 8 * MIB),
        (None, 0.01, False, (8 * MIB + 2 * (128 << 10)) / 0.01, (8 * MIB + 2 * (128 << 10)) / 0.01),
        (None, 100.0, True, 32 * MIB, 32 * MIB),
        (None, None, True, 0, 8 * MIB),
    ],
)
async def test_pace_follows_the_options_and_is_faster_after_an_unclean_stop(
    tmp_path: Path, rate: int | None, period: float | None, unclean: bool, speed: float, within: float
) -> None:
    async with opened_store(tmp_path) as store:
        for number in range(2):
            await put_blob(store, random_bytes(4 * MIB, number))
        scrub = Scrub(store, pytest.fail)
        scrub.rate, scrub.period, store.unclean = rate, period, unclean
        assert (scrub._speed(), scrub._file_speed()) == (speed, within)


async def test_scrub_pauses_in_proportion_to_what_it_read(tmp_path: Path) -> None:
    now = 1000.0
    async with opened_store(tmp_path) as store:
        for number in range(3):
            await put_blob(store, random_bytes(PIECE, number))
        scrub = Scrub(store, pytest.fail, lambda: now)
        scrub.rate = PIECE // 2
        await scrub.step()
        assert store.scrub_status.objects == 1
        assert scrub._wait() == 2.0
        now += 1.5
        await scrub.step()
        assert store.scrub_status.objects == 1
        now += 0.5
        await scrub.step()
        assert store.scrub_status.objects == 2


async def test_scrub_stops_after_the_piece_that_is_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, random_bytes(20 * PIECE))
        async with scrubbing(store, rate=1):
            await until(lambda: store.scrub_status.bytes)
        assert store.scrub_status.bytes == PIECE


async def test_scrub_reads_the_disk_and_drops_its_pages_from_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised: list[tuple[str, int]] = []
    pread = os.pread
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, count, advice: advised.append(("drop", at)))
    monkeypatch.setattr(os, "pread", lambda fd, count, at: advised.append(("read", at)) or pread(fd, count, at))
    path = tmp_path / "blob"
    path.write_bytes(bytes(PIECE))
    assert not FileCheck(path, Digest.of(bytes(PIECE)), PIECE, from_disk=True).step()
    assert advised == [("drop", 0), ("read", 0), ("drop", 0)]


async def test_unclean_stop_begins_an_urgent_round(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digests = sorted([await put_blob(store, random_bytes(100, number)) for number in range(4)])
        store.index.opened().set("scrub", f'["{digests[2]}", 12.0, false]')
    mark_as_killed(tmp_path)
    async with opened_store(tmp_path) as store:
        scrub = Scrub(store, pytest.fail)
        scrub._load()
        assert (scrub._position, store.unclean) == ("", True)
        scrub.rate = FAST
        for _ in range(2):
            await scrub._next()
        await scrub._save()
    async with opened_store(tmp_path) as store:
        scrub = Scrub(store, pytest.fail)
        scrub._load()
        assert (scrub._position, store.unclean) == (digests[1], True)
        scrub.rate = FAST
        for _ in range(3):
            await scrub._next()
        assert not store.unclean


async def test_rounds_at_a_rate_are_separated_by_a_rest(tmp_path: Path) -> None:
    now = 1000.0
    async with opened_store(tmp_path) as store:
        await put_blob(store, b"layer")
        scrub = Scrub(store, pytest.fail, lambda: now)
        scrub.rate = FAST
        for _ in range(5):
            await scrub.step()
            now += 1.0
        assert (store.scrub_status.objects, store.scrub_status.finished_at is None) == (1, False)
        assert scrub._wait() > 1.0
        now += 3600.0
        await scrub.step()
        assert store.scrub_status.objects == 2
