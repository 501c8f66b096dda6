"""Several worker processes behave as one, and one that dies is replaced."""

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.mitm import listeners
from hubcache.workers import supervisor
from support.http_client import wait_until
from support.program import LISTENERS, Program, running_program
from support.standin import Fault, Hub, random_bytes
from support.stores import bytes_on_disk
from support.tls_client import NewLog
from support.worker_processes import at_work, workers_of

REPO = "library/app"


def ticks(pid: int) -> int:
    """Return the user CPU time of a process in clock ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().split()[13])


@contextlib.contextmanager
def index_locked(store: Path) -> Iterator[None]:
    """Lock the index against writes of other connections."""
    with contextlib.closing(sqlite3.connect(store / "store/cache.db", autocommit=True)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture
def program() -> Iterator[Program]:
    with running_program(hubcache_workers="2") as running:
        wait_until(lambda: at_work(running))
        yield running


def test_workers_share_one_store_and_one_set_of_metrics(program: Program) -> None:
    data = random_bytes(2_000_000)
    digest = program.hub.blob(REPO, data)
    barrier = threading.Barrier(16)

    def get(number: int) -> bytes:
        barrier.wait()
        return program.client(("proxy", "mirror")[number % 2]).blob(digest, repo=REPO).body

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(get, range(16))) == {data}
    assert program.hub.count(kind="cdn", method="GET") == 1
    wait_until(lambda: program.metric("hubcache_requests_total", kind="blob") == 16)
    wait_until(lambda: program.metric("hubcache_sent_bytes_total") == 16 * len(data))
    before = {pid: ticks(pid) for pid in workers_of(program.pid)}

    def both_used_cpu_time() -> bool:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: program.client("proxy").blob(digest, repo=REPO).body, range(40))) == {data}
        return all(ticks(pid) > before[pid] for pid in before)

    wait_until(both_used_cpu_time)
    assert program.hub.count(kind="cdn", method="GET") == 1


def test_request_during_the_commit_of_a_blob_causes_no_download(program: Program) -> None:
    data = random_bytes(2_000_000)
    digest = program.hub.blob(REPO, data)
    fault = program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1_000_000))
    client = program.client("mirror")
    first = client.send("GET", f"/v2/{REPO}/blobs/{digest}")
    assert first.read(1000) == data[:1000]
    with index_locked(program.store):
        program.hub.faults.remove(fault)
        assert first.finish().body == data[1000:]
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: client.blob(digest, repo=REPO).body, range(8))) == {data}
        assert program.metric("hubcache_fills_in_flight") == 1
    first.close()
    client.wait_until_stored()
    assert program.hub.count(kind="cdn", method="GET") == 1


def test_worker_that_dies_is_replaced_and_clients_are_still_served(program: Program) -> None:
    image = program.hub.image(REPO, "1", [b"layer"])
    client = program.client("mirror")
    assert client.manifest("1", repo=REPO).body == image.manifest
    victim, survivor = workers_of(program.pid)
    os.kill(victim, signal.SIGKILL)
    for _ in range(10):
        assert client.manifest("1", repo=REPO).body == image.manifest
    wait_until(lambda: at_work(program))
    assert survivor in workers_of(program.pid)
    assert len(re.findall(r"worker \d ended \(-9\) and is started again", program.log)) == 1


def test_workers_serve_direct_connections_at_both_listeners() -> None:
    """The exception is the first client of each worker at the proxy listener, for which mitmproxy creates the
    certificate."""
    with running_program(hubcache_workers="2", termlog_verbosity="info") as program:
        wait_until(lambda: at_work(program))
        data = random_bytes(2_000_000)
        image = program.hub.image(REPO, "1", [data, b"small"])
        new_log = NewLog(program)
        for client in map(program.client, LISTENERS):
            for _ in range(10):
                assert client.manifest("1", repo=REPO).body == image.manifest
                assert [client.blob(digest, repo=REPO).body for digest in image.layers] == [data, b"small"]
        wait_until(lambda: len(new_log.answer_lines) + new_log.mitmproxy_clients == 60)
        assert 1 <= new_log.mitmproxy_clients <= 2


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_owner_and_release_the_ports(program: Program, with_signal: signal.Signals) -> None:
    image = program.hub.image(REPO, "1", [b"layer"])
    assert program.client("proxy").manifest("1", repo=REPO).body == image.manifest
    workers = workers_of(program.pid)
    program.stop(with_signal)
    program.start()  # at once: it finds its ports free
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), what="the end of the workers")
    program.hub.reset_log()
    assert program.client("proxy").manifest("1", repo=REPO).status == 200
    assert program.hub.count(kind="manifest", method="GET") == 0


def test_program_that_is_killed_while_its_workers_start_can_be_started_again(program: Program) -> None:
    program.stop(signal.SIGKILL)
    program.launch()
    wait_until(lambda: bool(workers_of(program.pid)))
    program.stop(signal.SIGKILL)
    program.start()
    assert program.client("proxy").request("GET", "/v2/").status == 401


def test_saving_flows_uses_one_process_and_is_logged(tmp_path: Path, hub: Hub) -> None:
    options = {"hubcache_workers": "2", "save_stream_file": str(tmp_path / "flows")}
    program = Program(tmp_path, hub, options)
    try:
        program.start()
        assert "one worker only: flows are saved to a file" in program.log
        assert workers_of(program.pid) == set()
        hub.image(REPO, "1", [b"layer"])
        assert program.client("mirror").manifest("1", repo=REPO).status == 200
    finally:
        program.stop()


def test_invalid_number_of_workers_ends_the_start(tmp_path: Path, hub: Hub) -> None:
    program = Program(tmp_path, hub, {"hubcache_workers": "many"})
    program.launch()
    assert program.wait_for_exit() == 1
    assert "hubcache_workers: 'many' is not auto or a number from 1 to 64" in program.log


async def test_listener_continues_after_an_aborted_connection_and_without_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "_PAUSE_SECONDS", 0.01)
    accepted = asyncio.Event()

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        writer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    failures = [errno.ECONNABORTED, errno.EMFILE]
    accept = socket.socket.accept

    def failing(listening: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", failing)
    listener = listeners._Listener(SimpleNamespace(handle_stream=handle), listening.detach())
    try:
        _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        async with asyncio.timeout(5):
            await accepted.wait()
        writer.close()
    finally:
        listener.close()
    assert not failures


async def test_start_of_a_worker_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PAUSE_SECONDS", 0.01)
    decider = SimpleNamespace(on_change=lambda _: None)
    started, ended = asyncio.Event(), asyncio.Event()
    attempts = 0

    async def launch(*_: object, **__: object) -> SimpleNamespace:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        started.set()
        return SimpleNamespace(wait=ended.wait, send_signal=lambda _: ended.set())

    monkeypatch.setattr(asyncio, "create_subprocess_exec", launch)
    workers = supervisor.Supervisor(["worker"], 1, [], {}, decider, lambda _: None)
    keeper = asyncio.create_task(workers._keep_running(1))
    async with asyncio.timeout(5):
        await started.wait()
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert attempts == 3
    await workers.close()


def test_capacity_is_not_exceeded_with_workers(tmp_path: Path) -> None:
    """All processes serve pulls, and the owner admits content to the store."""
    with running_program(hubcache_workers="2", hubcache_size="32M", hubcache_admit_after="1") as program:
        wait_until(lambda: at_work(program))
        blobs = {program.hub.blob(REPO, data): data for data in (random_bytes(4_000_000, f"{n}") for n in range(16))}
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.is_set():
                peak = max(peak, bytes_on_disk(program.store))

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(8) as pool:
            for _ in range(2):
                bodies = pool.map(lambda digest: program.client("proxy").blob(digest, repo=REPO).body, blobs)
                assert list(bodies) == list(blobs.values())
        done.set()
        watcher.join()
        assert 8 << 20 < peak <= 32 << 20
        program.assert_no_errors()
