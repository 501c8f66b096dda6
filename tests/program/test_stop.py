"""The program ends in order: downloads go on to their end within a bound, and nobody new comes."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import program as programs
from support.http_client import Exchange, head
from support.program import HUB_HOST, Door, Product, Rig, wait_until
from support.pushes import credentials
from support.standin import Fault, random_bytes
from support.worker_processes import at_work, workers_of

REPO = "library/app"
DATA = random_bytes(6_000_000)


@contextmanager
def program(name: str, **more: str) -> Iterator[Rig]:
    """The product as mitmdump, as mitmweb, as mitmdump with two workers, or with bodies going through the pump."""
    options = {"hubcache_workers": "2" if name == "workers" else "1", "hubcache_stop_within": "30"} | more
    options["hubcache_tunnel"] = "localhost"  # what the tests tunnel to is on this machine
    if name == "pump":
        options["modify_headers"] = "/~s/X-Seen/1"
    with programs.running(None, HUB_HOST, **options) as rig:
        if name == "mitmweb":
            rig.product.stop()
            rig.product.log_file.unlink()
            rig.product.command[0] = rig.product.command[0].replace("mitmdump", "mitmweb")
            rig.product.command += ["--no-web-open-browser", "--set", "web_port=0"]
            rig.product.start()
        elif name == "workers":
            wait_until(lambda: at_work(rig))
        yield rig


@pytest.fixture(params=["mitmdump", "workers", "mitmweb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stopping(product: Product) -> None:
    """Send the signal, and wait until it is heard."""
    os.kill(product.pid, signal.SIGTERM)
    product.wait_for_log("downloads are running, for at most")


def exit_code(product: Product) -> int:
    process: Any = product._process
    return int(process.wait(30))


def begun(rig: Rig, digest: str, count: int) -> list[Exchange]:
    """Downloads at both doors whose ends the Hub holds back."""
    doors = [rig.door(("proxy", "mirror")[number % 2]) for number in range(count)]
    exchanges = [door.send("GET", f"/v2/{REPO}/blobs/{digest}") for door in doors]
    assert [exchange.read(1000) for exchange in exchanges] == [DATA[:1000]] * count
    return exchanges


def kept(door: Door, product: Product) -> socket.socket:
    """A connection that is kept after an answer."""
    connection = door.connect()
    connection.sendall(head("GET", "/v2/", {"Host": HUB_HOST}))
    Exchange(connection, "GET").finish()
    return connection


def test_running_downloads_are_complete_and_nobody_new_is_accepted(kind: str) -> None:
    with program(kind) as rig:
        digest = rig.hub.blob(REPO, DATA)
        fault = rig.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchanges = begun(rig, digest, 20)
        stopping(rig.product)
        assert "20 downloads are running, for at most 30 seconds" in rig.product.log
        for port in (rig.product.proxy, rig.product.mirror):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        rig.hub.faults.remove(fault)
        for exchange in exchanges:
            assert exchange.finish().body == DATA[1000:]
            exchange.close()
        assert exit_code(rig.product) == 0
        assert "0 downloads were cut" in rig.product.log


@pytest.mark.parametrize("kind", ["mitmdump", "workers", "mitmweb", "pump"])
def test_clients_that_take_stored_blobs_slowly_get_all_of_them(kind: str) -> None:
    data = random_bytes(24_000_000)
    with program(kind) as rig:
        digest = rig.hub.blob(REPO, data)
        assert rig.door("mirror").blob(digest, repo=REPO).body == data
        rig.door("mirror").settle()
        exchanges = [rig.door(name).send("GET", f"/v2/{REPO}/blobs/{digest}") for name in programs.DOORS]
        assert [exchange.read(1000) for exchange in exchanges] == [data[:1000]] * 2
        stopping(rig.product)
        assert "2 downloads are running" in rig.product.log
        for exchange in exchanges:
            assert exchange.finish().body == data[1000:]
            exchange.close()
        assert exit_code(rig.product) == 0


def test_kept_connections_are_closed_at_once(kind: str) -> None:
    with program(kind) as rig:
        connections = [kept(rig.door(name), rig.product) for name in programs.DOORS]
        stopping(rig.product)
        assert "0 downloads are running" in rig.product.log
        for connection in connections:
            with connection:
                assert connection.recv(1) == b""
        assert exit_code(rig.product) == 0


def test_connection_is_closed_after_the_answer_in_progress(kind: str) -> None:
    with program(kind) as rig:
        digest = rig.hub.blob(REPO, DATA)
        fault = rig.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        connections = [rig.door(name).connect() for name in programs.DOORS]
        for connection in connections:
            connection.sendall(head("GET", f"/v2/{REPO}/blobs/{digest}", {"Host": HUB_HOST}))
        exchanges = [Exchange(connection, "GET") for connection in connections]
        stopping(rig.product)
        rig.hub.faults.remove(fault)
        for exchange, connection in zip(exchanges, connections, strict=True):
            assert exchange.finish().body == DATA
            assert connection.recv(1) == b""
            connection.close()
        assert exit_code(rig.product) == 0


def test_request_that_waits_for_its_answer_gets_one(kind: str) -> None:
    with program(kind) as rig:
        image = rig.hub.image(REPO, "1", [b"layer"])
        fault = rig.hub.faults.add(Fault(kind="manifest", delay=1.0))
        answers: list[Any] = []
        asking = [
            threading.Thread(target=lambda name=name: answers.append(rig.door(name).manifest("1", repo=REPO)))
            for name in programs.DOORS
        ]
        for each in asking:
            each.start()
        wait_until(lambda: fault.hits)
        stopping(rig.product)
        for each in asking:
            each.join()
        assert {(answer.status, answer.body) for answer in answers} == {(200, image.manifest)}
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        assert exit_code(rig.product) == 0


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        ("mitmdump", signal.SIGTERM),
        ("mitmdump", signal.SIGINT),
        ("workers", signal.SIGTERM),
        ("mitmweb", signal.SIGINT),
    ],
)
def test_second_signal_ends_at_once(kind: str, again: signal.Signals) -> None:
    with program(kind) as rig:
        digest = rig.hub.blob(REPO, DATA)
        fault = rig.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchanges = begun(rig, digest, 4)
        workers = workers_of(rig.product.pid)
        stopping(rig.product)
        os.kill(rig.product.pid, again)
        assert exit_code(rig.product) == 0
        assert "4 downloads were cut" in rig.product.log
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        for exchange in exchanges:
            assert not exchange.finish().complete
            exchange.close()
        rig.hub.faults.remove(fault)


def test_time_is_bounded_and_what_is_cut_is_told(kind: str) -> None:
    with program(kind, hubcache_stop_within="1") as rig:
        digest = rig.hub.blob(REPO, DATA)
        fault = rig.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchanges = begun(rig, digest, 4)
        rig.product.stop()
        assert "4 downloads are running, for at most 1 seconds" in rig.product.log
        assert "4 downloads were cut" in rig.product.log
        for exchange in exchanges:
            assert not exchange.finish().complete
            exchange.close()
        rig.hub.faults.remove(fault)


@pytest.mark.parametrize("kind", ["mitmdump", "workers"])
def test_fill_that_nobody_reads_does_not_delay_the_end(kind: str) -> None:
    with program(kind) as rig:
        digest = rig.hub.blob(REPO, DATA)
        fault = rig.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        for exchange in begun(rig, digest, 2):
            exchange.close()
        rig.product.stop()
        assert "downloads were cut" in rig.product.log
        rig.hub.faults.remove(fault)


def test_push_in_progress_is_complete(kind: str) -> None:
    data = random_bytes(1_000_000)
    with program(kind) as rig:
        rig.hub.user("alice", "secret")
        door = rig.door("proxy")
        door.repo = "alice/app"
        headers = credentials(door)
        begun = door.request("POST", f"/v2/{door.repo}/blobs/uploads/", headers | {"Content-Length": "0"})
        fields = {"Host": HUB_HOST, "Content-Length": str(len(data))} | headers
        with door.connect() as connection:
            connection.sendall(head("PATCH", begun.headers["location"], fields) + data[:500_000])
            stopping(rig.product)
            assert "1 downloads are running" in rig.product.log
            connection.sendall(data[500_000:])
            answer = Exchange(connection, "PATCH").finish()
            assert (answer.status, answer.headers["range"]) == (202, "0-999999")
            assert connection.recv(1) == b""
        assert exit_code(rig.product) == 0


def test_stop_under_load_leaves_nothing_open(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that stall, fetch, wait, have a tunnel, have only come: all are cut, and nothing is said of it."""
    monkeypatch.setenv("PYTHONWARNINGS", "default::ResourceWarning")
    stored, coming = random_bytes(12_000_000), DATA
    with program(kind, hubcache_stop_within="1") as rig, socket.create_server(("127.0.0.1", 0)) as server:
        digests = [rig.hub.blob(REPO, data) for data in (stored, coming)]
        assert rig.door("mirror").blob(digests[0], repo=REPO).body == stored
        rig.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        waiting = rig.hub.faults.add(Fault(kind="manifest", delay=3.0))
        with ExitStack() as stack:
            for door in map(rig.door, programs.DOORS):
                for digest in digests * 4:
                    stack.callback(door.send("GET", f"/v2/{REPO}/blobs/{digest}").close)
                asking = stack.enter_context(door.connect())
                asking.sendall(head("GET", f"/v2/{REPO}/manifests/{door.name}", {"Host": HUB_HOST}))
            tunnel = stack.enter_context(rig.product.tunnel("localhost", server.getsockname()[1]))
            tunnel.sendall(b"a")
            stack.enter_context(server.accept()[0])
            stack.enter_context(socket.create_connection(("127.0.0.1", rig.product.proxy)))
            wait_until(lambda: waiting.hits == 2)
            stopping(rig.product)
            assert exit_code(rig.product) == 0
        rig.hub.faults.clear()
        assert "ResourceWarning" not in rig.product.log
        assert "a request failed" not in rig.product.log


def test_tunnel_in_use_goes_on_and_one_that_is_idle_ends(kind: str) -> None:
    with program(kind) as rig, socket.create_server(("127.0.0.1", 0)) as server:
        tunnel = rig.product.tunnel("localhost", server.getsockname()[1])
        tunnel.sendall(b"a")
        far, _ = server.accept()
        with tunnel, far:
            assert far.recv(1) == b"a"
            stopping(rig.product)
            assert "1 downloads are running" in rig.product.log
            far.sendall(b"b" * 100_000)
            got = b""
            while len(got) < 100_000:
                got += tunnel.recv(100_000)
            assert tunnel.recv(1) == b""
        assert exit_code(rig.product) == 0


@pytest.mark.parametrize("kind", ["mitmdump", "workers"])
def test_hangup_is_ignored_and_said(kind: str) -> None:
    with program(kind) as rig:
        image = rig.hub.image(REPO, "1", [b"layer"])
        workers = workers_of(rig.product.pid)
        for pid in (rig.product.pid, *workers):
            os.kill(pid, signal.SIGHUP)
        rig.product.wait_for_log("SIGHUP is ignored: options are read at start")
        assert rig.door("mirror").manifest("1", repo=REPO).body == image.manifest
        assert workers_of(rig.product.pid) == workers


def test_workers_to_whom_the_system_sends_the_signal_too_serve_to_the_end() -> None:
    """As systemd does: to all processes of the service."""
    with program("workers") as rig:
        digest = rig.hub.blob(REPO, DATA)
        fault = rig.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchanges = begun(rig, digest, 4)
        for pid in (rig.product.pid, *workers_of(rig.product.pid)):
            os.kill(pid, signal.SIGTERM)
        rig.product.wait_for_log("4 downloads are running, for at most")
        rig.hub.faults.remove(fault)
        for exchange in exchanges:
            assert exchange.finish().body == DATA[1000:]
            exchange.close()
        assert exit_code(rig.product) == 0


def test_killed_owner_leaves_nothing_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with program("workers") as rig:
        workers = workers_of(rig.product.pid)
        rig.product.stop(signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("hubcache-test-")] == []


def test_crowd_that_comes_while_the_program_stands_still_is_served(kind: str) -> None:
    """The kernel keeps them all, where mitmproxy would have it keep a hundred."""
    with program(kind) as rig:
        everybody = (rig.product.pid, *workers_of(rig.product.pid))
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        crowd = [socket.socket() for _ in range(500)]
        try:
            for client in crowd:
                client.settimeout(30)
                client.connect(("127.0.0.1", rig.product.mirror))
                client.sendall(head("GET", "/v2/", {"Host": HUB_HOST, "Connection": "close"}))
        finally:
            for pid in everybody:
                os.kill(pid, signal.SIGCONT)
        for client in crowd:
            exchange = Exchange(client, "GET")
            assert exchange.finish().status == 200
            exchange.close()
