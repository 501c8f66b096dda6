"""After SIGTERM running downloads continue for a limited time, and new connections are refused."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.http_client import Exchange, head, wait_until
from support.program import HUB_HOST, LISTENERS, Program, RegistryClient, running_program
from support.pushes import credentials
from support.standin import Fault, random_bytes
from support.worker_processes import at_work, workers_of

REPO = "library/app"
DATA = random_bytes(6_000_000)


@contextmanager
def started(name: str, **more: str) -> Iterator[Program]:
    """Run the product as mitmdump, as mitmweb, as mitmdump with two workers, or with bodies from the body listener."""
    options = {"hubcache_workers": "2" if name == "workers" else "1", "hubcache_stop_within": "30"} | more
    options["hubcache_tunnel"] = "localhost"  # the tests tunnel to this machine
    if name == "body listener":
        options["modify_headers"] = "/~s/X-Seen/1"
    command, arguments = "mitmdump", []
    if name == "mitmweb":
        command, arguments = "mitmweb", ["--no-web-open-browser", "--set", "web_port=0"]
    with running_program(None, HUB_HOST, None, arguments, command, **options) as program:
        if name == "workers":
            wait_until(lambda: at_work(program))
        yield program


@pytest.fixture(params=["mitmdump", "workers", "mitmweb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def send_sigterm(program: Program) -> None:
    """Send SIGTERM, and wait until the stop has begun."""
    os.kill(program.pid, signal.SIGTERM)
    program.wait_for_log("downloads are running, for at most")


def exit_code(program: Program) -> int:
    process: Any = program._process
    return int(process.wait(30))


def start_downloads(program: Program, digest: str, count: int) -> list[Exchange]:
    """Start downloads at both listeners; the Hub delays the end of each."""
    clients = [program.client(("proxy", "mirror")[number % 2]) for number in range(count)]
    exchanges = [client.send("GET", f"/v2/{REPO}/blobs/{digest}") for client in clients]
    assert [exchange.read(1000) for exchange in exchanges] == [DATA[:1000]] * count
    return exchanges


def idle_connection(client: RegistryClient, program: Program) -> socket.socket:
    """Return a connection that stays open after an answer."""
    connection = client.connect()
    connection.sendall(head("GET", "/v2/", {"Host": HUB_HOST}))
    Exchange(connection, "GET").finish()
    return connection


def test_running_downloads_complete_and_new_connections_are_refused(kind: str) -> None:
    with started(kind) as program:
        digest = program.hub.blob(REPO, DATA)
        fault = program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchanges = start_downloads(program, digest, 20)
        send_sigterm(program)
        assert "20 downloads are running, for at most 30 seconds" in program.log
        for port in (program.proxy, program.mirror):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        program.hub.faults.remove(fault)
        for exchange in exchanges:
            assert exchange.finish().body == DATA[1000:]
            exchange.close()
        assert exit_code(program) == 0
        assert "0 downloads were cut" in program.log


@pytest.mark.parametrize("kind", ["mitmdump", "workers", "mitmweb", "body listener"])
def test_slow_clients_get_stored_blobs_completely(kind: str) -> None:
    data = random_bytes(24_000_000)
    with started(kind) as program:
        digest = program.hub.blob(REPO, data)
        assert program.client("mirror").blob(digest, repo=REPO).body == data
        program.client("mirror").wait_until_stored()
        exchanges = [program.client(name).send("GET", f"/v2/{REPO}/blobs/{digest}") for name in LISTENERS]
        assert [exchange.read(1000) for exchange in exchanges] == [data[:1000]] * 2
        send_sigterm(program)
        assert "2 downloads are running" in program.log
        for exchange in exchanges:
            assert exchange.finish().body == data[1000:]
            exchange.close()
        assert exit_code(program) == 0


def test_idle_connections_are_closed_at_once(kind: str) -> None:
    with started(kind) as program:
        connections = [idle_connection(program.client(name), program) for name in LISTENERS]
        send_sigterm(program)
        assert "0 downloads are running" in program.log
        for connection in connections:
            with connection:
                assert connection.recv(1) == b""
        assert exit_code(program) == 0


def test_connection_is_closed_after_the_answer_in_progress(kind: str) -> None:
    with started(kind) as program:
        digest = program.hub.blob(REPO, DATA)
        fault = program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        connections = [program.client(name).connect() for name in LISTENERS]
        for connection in connections:
            connection.sendall(head("GET", f"/v2/{REPO}/blobs/{digest}", {"Host": HUB_HOST}))
        exchanges = [Exchange(connection, "GET") for connection in connections]
        send_sigterm(program)
        program.hub.faults.remove(fault)
        for exchange, connection in zip(exchanges, connections, strict=True):
            assert exchange.finish().body == DATA
            assert connection.recv(1) == b""
            connection.close()
        assert exit_code(program) == 0


def test_request_in_progress_is_answered(kind: str) -> None:
    with started(kind) as program:
        images = [program.hub.image(f"library/{name}", "1", [name.encode()]) for name in LISTENERS]
        faults = [
            program.hub.faults.add(Fault(kind="manifest", method="GET", path=f"*/library/{name}/*", pause_after=1))
            for name in LISTENERS
        ]
        answers: list[Any] = []
        asking = [
            threading.Thread(
                target=lambda name=name: answers.append(program.client(name).manifest("1", repo=f"library/{name}"))
            )
            for name in LISTENERS
        ]
        for each in asking:
            each.start()
        wait_until(lambda: all(fault.hits for fault in faults))
        send_sigterm(program)
        program.hub.faults.clear()
        for each in asking:
            each.join()
        assert {(answer.status, answer.body) for answer in answers} == {(200, image.manifest) for image in images}
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        assert exit_code(program) == 0


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        ("mitmdump", signal.SIGTERM),
        ("mitmdump", signal.SIGINT),
        ("workers", signal.SIGTERM),
        ("mitmweb", signal.SIGINT),
    ],
)
def test_second_signal_ends_downloads_at_once(kind: str, again: signal.Signals) -> None:
    with started(kind) as program:
        digest = program.hub.blob(REPO, DATA)
        fault = program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchanges = start_downloads(program, digest, 4)
        workers = workers_of(program.pid)
        send_sigterm(program)
        os.kill(program.pid, again)
        assert exit_code(program) == 0
        assert "4 downloads were cut" in program.log
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        for exchange in exchanges:
            assert not exchange.finish().complete
            exchange.close()
        program.hub.faults.remove(fault)


def test_downloads_are_cut_after_the_time_limit_and_counted_in_the_log(kind: str) -> None:
    with started(kind, hubcache_stop_within="1") as program:
        digest = program.hub.blob(REPO, DATA)
        fault = program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchanges = start_downloads(program, digest, 4)
        program.stop()
        assert "4 downloads are running, for at most 1 seconds" in program.log
        assert "4 downloads were cut" in program.log
        for exchange in exchanges:
            assert not exchange.finish().complete
            exchange.close()
        program.hub.faults.remove(fault)


@pytest.mark.parametrize("kind", ["mitmdump", "workers"])
def test_fill_without_a_client_does_not_delay_the_end(kind: str) -> None:
    with started(kind) as program:
        digest = program.hub.blob(REPO, DATA)
        fault = program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        for exchange in start_downloads(program, digest, 2):
            exchange.close()
        program.stop()
        assert "downloads were cut" in program.log
        program.hub.faults.remove(fault)


def test_push_in_progress_completes(kind: str) -> None:
    data = random_bytes(1_000_000)
    with started(kind) as program:
        program.hub.user("alice", "secret")
        client = program.client("proxy")
        client.repo = "alice/app"
        headers = credentials(client)
        upload = client.request("POST", f"/v2/{client.repo}/blobs/uploads/", headers | {"Content-Length": "0"})
        fields = {"Host": HUB_HOST, "Content-Length": str(len(data))} | headers
        with client.connect() as connection:
            connection.sendall(head("PATCH", upload.headers["location"], fields) + data[:500_000])
            send_sigterm(program)
            assert "1 downloads are running" in program.log
            connection.sendall(data[500_000:])
            answer = Exchange(connection, "PATCH").finish()
            assert (answer.status, answer.headers["range"]) == (202, "0-999999")
            assert connection.recv(1) == b""
        assert exit_code(program) == 0


def test_stop_under_load_leaves_nothing_open(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that stall, download, wait, use a tunnel or are idle are all cut, without an error in the log."""
    monkeypatch.setenv("PYTHONWARNINGS", "default::ResourceWarning")
    stored, unfinished = random_bytes(12_000_000), DATA
    with started(kind, hubcache_stop_within="1") as program, socket.create_server(("127.0.0.1", 0)) as server:
        digests = [program.hub.blob(REPO, data) for data in (stored, unfinished)]
        assert program.client("mirror").blob(digests[0], repo=REPO).body == stored
        program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        waiting = program.hub.faults.add(Fault(kind="manifest", delay=3.0))
        with ExitStack() as stack:
            for client in map(program.client, LISTENERS):
                for digest in digests * 4:
                    stack.callback(client.send("GET", f"/v2/{REPO}/blobs/{digest}").close)
                asking = stack.enter_context(client.connect())
                asking.sendall(head("GET", f"/v2/{REPO}/manifests/{client.listener}", {"Host": HUB_HOST}))
            tunnel = stack.enter_context(program.tunnel("localhost", server.getsockname()[1]))
            tunnel.sendall(b"a")
            stack.enter_context(server.accept()[0])
            stack.enter_context(socket.create_connection(("127.0.0.1", program.proxy)))
            wait_until(lambda: waiting.hits == 2)
            send_sigterm(program)
            assert exit_code(program) == 0
        program.hub.faults.clear()
        assert "ResourceWarning" not in program.log
        assert "a request failed" not in program.log


def test_tunnel_in_use_continues_until_it_is_idle(kind: str) -> None:
    with started(kind) as program, socket.create_server(("127.0.0.1", 0)) as server:
        tunnel = program.tunnel("localhost", server.getsockname()[1])
        tunnel.sendall(b"a")
        server_side, _ = server.accept()
        with tunnel, server_side:
            assert server_side.recv(1) == b"a"
            send_sigterm(program)
            assert "1 downloads are running" in program.log
            server_side.sendall(b"b" * 100_000)
            received = b""
            while len(received) < 100_000:
                received += tunnel.recv(100_000)
            assert tunnel.recv(1) == b""
        assert exit_code(program) == 0


@pytest.mark.parametrize("kind", ["mitmdump", "workers"])
def test_sighup_without_a_config_file_changes_nothing(kind: str) -> None:
    with started(kind) as program:
        image = program.hub.image(REPO, "1", [b"layer"])
        workers = workers_of(program.pid)
        for pid in (program.pid, *workers):
            os.kill(pid, signal.SIGHUP)
        program.wait_for_log(f"hubcache: SIGHUP: {program.confdir}/hubcache.yaml: nothing changed")
        assert program.client("mirror").manifest("1", repo=REPO).body == image.manifest
        assert workers_of(program.pid) == workers


def test_workers_that_receive_the_signal_too_complete_their_downloads() -> None:
    """systemd sends the signal to all processes of a service."""
    with started("workers") as program:
        digest = program.hub.blob(REPO, DATA)
        fault = program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchanges = start_downloads(program, digest, 4)
        for pid in (program.pid, *workers_of(program.pid)):
            os.kill(pid, signal.SIGTERM)
        program.wait_for_log("4 downloads are running, for at most")
        program.hub.faults.remove(fault)
        for exchange in exchanges:
            assert exchange.finish().body == DATA[1000:]
            exchange.close()
        assert exit_code(program) == 0


def test_killed_owner_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with started("workers") as program:
        workers = workers_of(program.pid)
        program.stop(signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("hubcache-test-")] == []


def test_clients_that_connect_while_the_program_is_stopped_are_served(kind: str) -> None:
    """The listen backlog holds them all; mitmproxy's default backlog would hold a hundred."""
    with started(kind) as program:
        processes = (program.pid, *workers_of(program.pid))
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        clients = [socket.socket() for _ in range(500)]
        try:
            for client in clients:
                client.settimeout(30)
                client.connect(("127.0.0.1", program.mirror))
                client.sendall(head("GET", "/v2/", {"Host": HUB_HOST, "Connection": "close"}))
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)
        for client in clients:
            exchange = Exchange(client, "GET")
            assert exchange.finish().status == 200
            exchange.close()
