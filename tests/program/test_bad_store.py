"""Pulls succeed with a store that cannot be used, is damaged or full, or whose process was killed."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubcache.store.index import Index
from support.control import call_program
from support.http_client import wait_until
from support.program import LISTENERS, Program, RegistryClient, running_program
from support.required import missing
from support.standin import Fault, Hub, Image, random_bytes

LAYER = 400_000


def image(client: RegistryClient) -> Image:
    """Put an image that no other test has."""
    return client.hub.image(client.repo, "latest", [random_bytes(LAYER, client.repo)])


def pull(client: RegistryClient, expected: Image) -> None:
    """Pull an image, and compare its content."""
    assert client.manifest("latest").body == expected.manifest
    answer = client.blob(expected.layers[0])
    assert (answer.complete, answer.body == random_bytes(LAYER, client.repo)) == (True, True)
    part = client.blob(expected.layers[0], {"Range": "bytes=100-199"})
    assert (part.status, part.body) == (206, random_bytes(LAYER, client.repo)[100:200])


def pull_uncached(program: Program, words: str) -> None:
    """Pull through both listeners; the problem must be logged once, and be in `/healthz` and in the metrics."""
    for name in LISTENERS:
        for _ in range(2):
            client = program.client(name)
            pull(client, image(client))
    assert program.health["status"] == "degraded"
    assert words in program.health["store"]["problem"]
    assert program.metric("hubcache_store_usable") == 0
    assert program.log.count("not storing, pulls continue uncached") == 1


@pytest.fixture
def options() -> dict[str, str]:
    """Options of the program; a parametrised test overrides them."""
    return {}


@pytest.fixture
def program(tmp_path: Path, hub: Hub, options: dict[str, str]) -> Iterator[Program]:
    """A program that is not started yet."""
    program = Program(tmp_path, hub, options)
    yield program
    program.stop(signal.SIGKILL)


def unusual_lines(program: Program) -> list[str]:
    """Return the log without the lines of every start."""
    usual = ("Loading script", "listening at", "Error logged during startup")
    return [line for line in program.log.splitlines() if not any(words in line for words in usual)]


def last_line_of_start(program: Program) -> str:
    """Return the last line that the start logs; requests are logged without `hubcache:`."""
    lines = [line for line in program.log.splitlines() if "hubcache: " in line]
    return next(line for line in reversed(lines) if "status at" not in line and "pulls continue uncached" not in line)


def layer_files(program: Program) -> list[Path]:
    """Return the files of all stored layers."""
    return [path for path in (program.store / "store" / "blobs").glob("*/*") if path.stat().st_size == LAYER]


# -- directories that cannot be used


def test_pulls_are_uncached_when_the_store_directory_is_a_file(program: Program, hub: Hub) -> None:
    program.store.write_text("not a directory")
    program.start()
    pull_uncached(program, "store directory")
    assert f"hubcache: not storing: store directory {program.store} cannot be used: " in last_line_of_start(program)
    assert program.store.read_text() == "not a directory"
    assert "control socket" not in program.log
    program.assert_no_errors()


def test_pulls_are_uncached_when_another_process_uses_the_store(hub: Hub) -> None:
    with (
        running_program(hub) as first,
        running_program(hub, hubcache_dir=str(first.store)) as second,
    ):
        pull_uncached(second, "in use by another process")
        assert "hubcache: not storing: " in (line := last_line_of_start(second))
        assert "in use by another process" in line
        client = first.client("mirror")
        pull(client, image(client))
        assert first.health["status"] == "ok"
        assert call_program(first.store, "GET", "/v1/status")[1]["store"]["problem"] is None


def test_store_of_a_newer_version_ends_the_start_with_one_line(program: Program) -> None:
    index = Index(program.store / "store")
    index.set("format", "99")
    index.close()
    program.launch()
    assert program.wait_for_exit() == 1
    (complaint,) = unusual_lines(program)
    assert "format 99" in complaint
    assert "use the newer program, or another hubcache_dir" in complaint
    assert "Traceback" not in program.log


# -- damage


@pytest.mark.parametrize("garbage", [b"garbage" * 10_000, b"SQLite format 3\0" + b"\xff" * 50_000, b""])
def test_store_is_empty_after_a_start_with_an_unreadable_index(program: Program, hub: Hub, garbage: bytes) -> None:
    orphan = program.store / "store" / "blobs" / "00" / "orphan"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"content that no index row names")
    (program.store / "store" / "cache.db").write_bytes(garbage)
    program.start()
    assert not orphan.exists()
    client = program.client("mirror")
    stored = image(client)
    pull(client, stored)
    client.wait_until_stored()
    assert program.health["status"] == "ok"
    hub.reset_log()
    pull(client, stored)
    assert hub.count() == 0
    program.assert_no_errors()


def test_blob_files_of_another_size_are_downloaded_again(program: Program, hub: Hub) -> None:
    program.start()
    clients = [program.client(name) for name in ("proxy", "mirror", "mirror")]
    images = [image(client) for client in clients]
    for client, stored in zip(clients, images, strict=True):
        pull(client, stored)
        client.wait_until_stored()
    program.stop()
    gone, short, long = layer_files(program)
    gone.unlink()
    os.truncate(short, LAYER - 1)
    os.truncate(long, LAYER + 1)
    hub.reset_log()
    program.start()
    for _ in range(2):
        for client, stored in zip(clients, images, strict=True):
            pull(client, stored)
            client.wait_until_stored()
        assert hub.count(kind="cdn", method="GET") == 3
    program.assert_no_errors()


def test_pulls_succeed_after_a_killed_process(program: Program, hub: Hub) -> None:
    """The unfinished file is removed, stored content is kept, and the blob is downloaded again."""
    program.start()
    done, half = program.client("mirror"), program.client("proxy")
    stored, wanted = image(done), image(half)
    pull(done, stored)
    done.wait_until_stored()
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=200_000))
    exchange = half.send("GET", f"/v2/{half.repo}/blobs/{wanted.layers[0]}")
    assert len(exchange.read(1000)) == 1000
    staging = program.store / "staging"
    wait_until(lambda: [path for path in staging.iterdir() if path.stat().st_size])
    program.stop(signal.SIGKILL)
    assert not exchange.finish().complete
    exchange.close()
    assert list(staging.iterdir())
    hub.faults.remove(fault)
    program.start()
    assert list(staging.iterdir()) == []
    hub.reset_log()
    pull(done, stored)
    assert hub.count() == 0
    pull(half, wanted)
    program.assert_no_errors()


@pytest.mark.parametrize("options", [{"hubcache_scrub": "0"}], ids=["without scrub"])
@pytest.mark.parametrize("name", LISTENERS)
def test_flipped_bit_costs_one_retry_after_a_restart(program: Program, name: str) -> None:
    program.start()
    client = program.client(name)
    stored = image(client)
    pull(client, stored)
    client.wait_until_stored()
    (path,) = layer_files(program)
    state = path.stat()
    damaged = bytearray(path.read_bytes())
    damaged[LAYER // 2] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    program.stop()
    program.start()
    answers = [client.blob(stored.layers[0]).body == random_bytes(LAYER, client.repo) for _ in range(3)]
    assert answers == [False, True, True]
    assert program.log.count("stored content is damaged") == 1
    assert str(path) in program.log
    damage = program.health["store"]["damage"]
    assert (damage["count"], damage["last"]["digest"]) == (1, stored.layers[0])
    assert Path(damage["last"]["kept"]).read_bytes() == damaged
    program.assert_no_errors()


def test_fifo_in_place_of_a_blob_blocks_neither_pulls_nor_the_stop(program: Program) -> None:
    program.start()
    client = program.client("mirror")
    stored = image(client)
    pull(client, stored)
    client.wait_until_stored()
    (path,) = layer_files(program)
    path.unlink()
    os.mkfifo(path)
    pull(client, stored)
    program.assert_no_errors()
    program.stop()


def test_content_is_stored_again_after_the_directory_was_deleted(program: Program, hub: Hub) -> None:
    program.start()
    client = program.client("mirror")
    pull(client, image(client))
    client.wait_until_stored()
    shutil.rmtree(program.store)
    other = program.client("proxy")
    stored = image(other)
    pull(other, stored)
    other.wait_until_stored()
    hub.reset_log()
    pull(other, stored)
    assert hub.count(kind="cdn", method="GET") == 0
    assert program.health["status"] == "ok"
    program.assert_no_errors()


# -- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        missing(f"needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_pulls_are_uncached_until_a_full_disk_has_free_space(small_disk: Path, hub: Hub) -> None:
    with running_program(hub, hubcache_dir=str(small_disk / "store")) as program:
        client = program.client("mirror")
        first = image(client)
        pull(client, first)
        client.wait_until_stored()
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(b"\0" * (4 << 20))
        for name in LISTENERS:
            other = program.client(name)
            pull(other, image(other))
        assert program.health["status"] == "degraded"
        assert program.metric("hubcache_store_usable") == 0
        hub.reset_log()
        assert client.blob(first.layers[0]).status == 200
        assert hub.count() == 0
        ballast.unlink()
        other = program.client("proxy")
        later = image(other)
        pull(other, later)
        other.wait_until_stored()
        hub.reset_log()
        pull(other, later)
        assert hub.count(kind="cdn", method="GET") == 0
        assert program.health["status"] == "ok"


def test_size_that_does_not_fit_is_a_warning_at_start(small_disk: Path, hub: Hub) -> None:
    with running_program(hub, hubcache_dir=str(small_disk / "store"), hubcache_size="2g") as program:
        program.wait_for_log("hubcache: hubcache_size is 2.0g, but the file system of the store has 3.0m")
    with running_program(hub, hubcache_size="1023m") as program:
        program.wait_for_log("hubcache: hubcache_size is 1023m: many images are larger")


def test_store_on_a_read_only_file_system_stores_nothing(small_disk: Path, hub: Hub) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with running_program(hub, hubcache_dir=str(small_disk / "store")) as program:
        pull_uncached(program, "Read-only file system")
        line = last_line_of_start(program)
        assert "hubcache: not storing: " in line
        assert "Read-only file system" in line


def test_blob_larger_than_the_capacity_is_passed_on(hub: Hub) -> None:
    with running_program(hub, hubcache_size="4m") as program:
        for name in LISTENERS:
            client = program.client(name)
            data = random_bytes(6_000_000, client.repo)
            digest = hub.blob(client.repo, data)
            for _ in range(2):
                answer = client.blob(digest)
                assert (answer.status, answer.complete, answer.body == data) == (200, True, True)
            pull(client, image(client))
        assert program.metric("hubcache_store_bytes") <= 4 << 20
