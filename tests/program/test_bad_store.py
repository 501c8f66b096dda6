"""A store that cannot be used, is damaged, full, or was left by a killed process: pulls go on."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubcache.store.index import Index
from support import program
from support.http_client import wait_until
from support.program import Door, Product, Rig, running
from support.required import missing
from support.standin import Fault, Hub, Image, random_bytes

LAYER = 400_000


def image(door: Door) -> Image:
    return door.hub.image(door.repo, "latest", [random_bytes(LAYER, door.repo)])


def pull(door: Door, what: Image) -> None:
    """The whole image, which must be right."""
    assert door.manifest("latest").body == what.manifest
    answer = door.blob(what.layers[0])
    assert (answer.complete, answer.body == random_bytes(LAYER, door.repo)) == (True, True)
    part = door.blob(what.layers[0], {"Range": "bytes=100-199"})
    assert (part.status, part.body) == (206, random_bytes(LAYER, door.repo)[100:200])


def pull_uncached(rig: Rig, words: str) -> None:
    """Pulls work through both doors, and the trouble is told once, in `/healthz` and in the metrics."""
    for name in program.DOORS:
        for _ in range(2):
            door = rig.door(name)
            pull(door, image(door))
    assert rig.product.health["status"] == "degraded"
    assert words in rig.product.health["store"]["problem"]
    assert rig.product.metric("hubcache_store_usable") == 0
    assert rig.product.log.count("not storing, pulls go on uncached") == 1


def prepared(directory: Path, hub: Hub, **options: str) -> Iterator[Product]:
    """A product that is not started yet."""
    product = Product(directory, hub, options)
    yield product
    product.stop(signal.SIGKILL)


@pytest.fixture
def product(tmp_path: Path, hub: Hub) -> Iterator[Product]:
    yield from prepared(tmp_path, hub)


def complaints(product: Product) -> list[str]:
    """The lines of the log that are about more than where things are."""
    usual = ("Loading script", "listening at", "Error logged during startup")
    return [line for line in product.log.splitlines() if not any(words in line for words in usual)]


# -- directories that cannot be used


def test_file_in_place_of_the_directory_means_uncached(product: Product, hub: Hub) -> None:
    product.store.write_text("not a directory")
    product.start()
    rig = Rig(hub, product)
    pull_uncached(rig, "store directory")
    assert product.store.read_text() == "not a directory"
    rig.check()


def test_directory_of_a_running_process_is_left_alone(hub: Hub) -> None:
    with (
        running(hub) as first,
        running(hub, hubcache_dir=str(first.product.store)) as second,
    ):
        pull_uncached(second, "in use by another process")
        door = first.door("mirror")
        pull(door, image(door))
        assert first.product.health["status"] == "ok"


def test_store_of_a_newer_version_ends_the_start_with_one_line(product: Product) -> None:
    index = Index(product.store / "store")
    index.set("format", "99")
    index.close()
    product.launch()
    assert product.ended() == 1
    (complaint,) = complaints(product)
    assert "format 99" in complaint
    assert "use the newer program, or another hubcache_dir" in complaint
    assert "Traceback" not in product.log


# -- damage


@pytest.mark.parametrize("garbage", [b"garbage" * 10_000, b"SQLite format 3\0" + b"\xff" * 50_000, b""])
def test_garbage_in_place_of_the_index_means_an_empty_store(product: Product, hub: Hub, garbage: bytes) -> None:
    orphan = product.store / "store" / "blobs" / "00" / "orphan"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"content that nothing names any more")
    (product.store / "store" / "cache.db").write_bytes(garbage)
    product.start()
    assert not orphan.exists()
    door = product.door("mirror", hub)
    stored = image(door)
    pull(door, stored)
    door.settle()
    assert product.health["status"] == "ok"
    hub.reset_log()
    pull(door, stored)
    assert hub.count() == 0
    Rig(hub, product).check()


def test_files_of_another_size_are_fetched_again(product: Product, hub: Hub) -> None:
    product.start()
    doors = [product.door(name, hub) for name in ("proxy", "mirror", "mirror")]
    images = [image(door) for door in doors]
    for door, stored in zip(doors, images, strict=True):
        pull(door, stored)
        door.settle()
    product.stop()
    gone, short, long = (
        path for path in (product.store / "store" / "blobs").glob("*/*") if path.stat().st_size == LAYER
    )
    gone.unlink()
    os.truncate(short, LAYER - 1)
    os.truncate(long, LAYER + 1)
    hub.reset_log()
    product.start()
    for _ in range(2):
        for door, stored in zip(doors, images, strict=True):
            pull(door, stored)
            door.settle()
        assert hub.count(kind="cdn", method="GET") == 3
    Rig(hub, product).check()


def test_killed_process_leaves_nothing_that_hurts(product: Product, hub: Hub) -> None:
    """Its half-filled file is swept, what it had stored is there, and the blob is fetched whole."""
    product.start()
    done, half = product.door("mirror", hub), product.door("proxy", hub)
    stored, wanted = image(done), image(half)
    pull(done, stored)
    done.settle()
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=200_000))
    exchange = half.send("GET", f"/v2/{half.repo}/blobs/{wanted.layers[0]}")
    assert len(exchange.read(1000)) == 1000
    staging = product.store / "staging"
    wait_until(lambda: [path for path in staging.iterdir() if path.stat().st_size])
    product.stop(signal.SIGKILL)
    assert not exchange.finish().complete
    exchange.close()
    assert list(staging.iterdir())
    hub.faults.remove(fault)
    product.start()
    assert list(staging.iterdir()) == []
    hub.reset_log()
    pull(done, stored)
    assert hub.count() == 0
    pull(half, wanted)
    Rig(hub, product).check()


def the_file(product: Product) -> Path:
    """The file of the only blob of a layer's size."""
    [path] = [path for path in (product.store / "store" / "blobs").glob("*/*") if path.stat().st_size == LAYER]
    return path


@pytest.fixture
def trusting(tmp_path: Path, hub: Hub) -> Iterator[Product]:
    """A product that verifies nothing unasked."""
    yield from prepared(tmp_path, hub, hubcache_scrub="0")


@pytest.mark.parametrize("name", program.DOORS)
def test_flipped_bit_costs_one_retry_also_after_a_restart(trusting: Product, hub: Hub, name: str) -> None:
    product = trusting
    product.start()
    door = product.door(name, hub)
    stored = image(door)
    pull(door, stored)
    door.settle()
    path = the_file(product)
    state = path.stat()
    damaged = bytearray(path.read_bytes())
    damaged[LAYER // 2] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    product.stop()
    product.start()
    answers = [door.blob(stored.layers[0]).body == random_bytes(LAYER, door.repo) for _ in range(3)]
    assert answers == [False, True, True]
    assert product.log.count("stored content is damaged") == 1
    assert str(path) in product.log
    damage = product.health["store"]["damage"]
    assert (damage["count"], damage["last"]["digest"]) == (1, stored.layers[0])
    assert Path(damage["last"]["kept"]).read_bytes() == damaged
    Rig(hub, product).check()


def test_fifo_in_place_of_a_blob_holds_up_neither_pulls_nor_the_end(product: Product, hub: Hub) -> None:
    product.start()
    door = product.door("mirror", hub)
    stored = image(door)
    pull(door, stored)
    door.settle()
    path = the_file(product)
    path.unlink()
    os.mkfifo(path)
    pull(door, stored)
    Rig(hub, product).check()
    product.stop()


def test_storing_goes_on_when_the_directory_was_deleted(product: Product, hub: Hub) -> None:
    product.start()
    door = product.door("mirror", hub)
    pull(door, image(door))
    door.settle()
    shutil.rmtree(product.store)
    other = product.door("proxy", hub)
    stored = image(other)
    pull(other, stored)
    other.settle()
    hub.reset_log()
    pull(other, stored)
    assert hub.count(kind="cdn", method="GET") == 0
    assert product.health["status"] == "ok"
    Rig(hub, product).check()


# -- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        missing(f"needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_means_uncached_until_there_is_room(small_disk: Path, hub: Hub) -> None:
    with running(hub, hubcache_dir=str(small_disk / "store")) as rig:
        door = rig.door("mirror")
        first = image(door)
        pull(door, first)
        door.settle()
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(b"\0" * (4 << 20))
        for name in program.DOORS:
            other = rig.door(name)
            pull(other, image(other))
        assert rig.product.health["status"] == "degraded"
        assert rig.product.metric("hubcache_store_usable") == 0
        hub.reset_log()
        assert door.blob(first.layers[0]).status == 200
        assert hub.count() == 0
        ballast.unlink()
        other = rig.door("proxy")
        what = image(other)
        pull(other, what)
        other.settle()
        hub.reset_log()
        pull(other, what)
        assert hub.count(kind="cdn", method="GET") == 0
        assert rig.product.health["status"] == "ok"


def test_blob_larger_than_the_store_is_passed_on(hub: Hub) -> None:
    with running(hub, hubcache_size="4m") as rig:
        for name in program.DOORS:
            door = rig.door(name)
            data = random_bytes(6_000_000, door.repo)
            digest = hub.blob(door.repo, data)
            for _ in range(2):
                answer = door.blob(digest)
                assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
            pull(door, image(door))
        assert rig.product.metric("hubcache_store_bytes") <= 4 << 20
