"""With an untested mitmproxy the program serves through its public hooks, and uses none of its internals."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http_client import TIMEOUT, Exchange, head
from support.program import HUB_HOST, LISTENERS, Program, RegistryClient, running_program
from support.standin import Fault, random_bytes

LARGE = 5_000_000
LINE = "hubcache: mitmproxy 13.0.0 is not tested with this version; serving through its public hooks only"
INTERNAL = ("direct.connection", "mitm.tls", "mitm.handover", "mitm.http1_server", "mitm.listeners", "connection_hooks")
SCRIPT = """
import sys
import mitmproxy.version

mitmproxy.version.VERSION = "13.0.0"


def running():
    loaded = sorted(name for name in sys.modules if name.startswith("hubcache."))
    print("modules:", *loaded, flush=True)
"""


@contextlib.contextmanager
def untested_program(directory: Path, **options: str | list[str]) -> Iterator[Program]:
    """Run the program in a mitmproxy that reports another version."""
    script = directory / "other_version.py"
    script.write_text(SCRIPT)
    with running_program(None, **options) as program:
        program.stop()
        program.log_file.unlink()
        at = program.command.index("-s")
        program.command[at:at] = ["-s", str(script)]
        program.start()
        yield program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with untested_program(tmp_path_factory.mktemp("script"), hubcache_tag_ttl="600") as running:
        yield running


@pytest.fixture(params=LISTENERS)
def client(request: pytest.FixtureRequest, program: Program) -> Iterator[RegistryClient]:
    program.reset()
    yield program.client(request.param)
    program.assert_no_errors()


def test_untested_version_is_logged_once_and_no_module_with_internals_is_loaded(program: Program) -> None:
    program.wait_for_log("modules:")
    loaded = next(line for line in program.log.splitlines() if line.startswith("modules:")).split()
    assert "hubcache.plugin" in loaded
    assert [name for name in INTERNAL if f"hubcache.{name}" in loaded] == []
    assert program.log.count(LINE) == 1


def test_pull_is_a_hit_the_second_time(client: RegistryClient) -> None:
    layers = [random_bytes(LARGE, client.repo), client.repo.encode()]
    image = client.hub.image(client.repo, "1", layers)
    for expected in (1, 0):
        assert client.manifest("1").body == image.manifest
        assert [client.blob(digest).body for digest in image.layers] == layers
        client.wait_until_stored()
        assert client.hub.count(kind="cdn") == expected * len(layers)
        client.hub.reset_log()
    hit = client.blob(image.layers[0], {"Range": "bytes=5-1000004"})
    assert (hit.status, hit.headers["cache-status"]) == (206, "hubcache; hit")
    assert hit.body == layers[0][5:1_000_005]
    assert client.manifest("none").failure == (404, "MANIFEST_UNKNOWN")


def test_requests_on_a_kept_connection_are_answered(client: RegistryClient) -> None:
    data = random_bytes(LARGE, client.repo)
    digest = client.hub.blob(client.repo, data)
    with client.connect() as kept:
        for _ in range(3):
            kept.sendall(head("GET", f"/v2/{client.repo}/blobs/{digest}", {"Host": HUB_HOST}))
            assert Exchange(kept, "GET").finish().body == data


def test_token_is_issued_and_a_push_is_passed_on(program: Program) -> None:
    client = program.client("proxy")
    assert client.token("repository:library/app:pull")
    assert client.request("POST", f"/v2/{client.repo}/blobs/uploads/").status in (202, 401)
    program.assert_no_errors()


@pytest.mark.parametrize("target", ["127.0.0.1", "localhost", "169.254.169.254"])
def test_destination_of_this_machine_is_refused(program: Program, target: str) -> None:
    with socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as connection:
        connection.sendall(head("CONNECT", f"{target}:{program.status}", {"Host": target}))
        assert Exchange(connection, "CONNECT").status == 403


@pytest.mark.parametrize("fields", [{"Content-Length": str(1 << 30)}, {"Transfer-Encoding": "chunked"}])
def test_client_that_sends_a_large_body_with_a_read_is_disconnected(program: Program, fields: dict[str, str]) -> None:
    with socket.create_connection(("127.0.0.1", program.mirror), TIMEOUT) as connection:
        connection.sendall(head("GET", "/v2/", {"Host": "x"} | fields))
        assert connection.recv(1) == b""


def test_stop_waits_for_a_download(tmp_path: Path) -> None:
    with untested_program(tmp_path, hubcache_stop_within="30") as program:
        client = program.client("mirror")
        data = random_bytes(LARGE, client.repo)
        digest = program.hub.blob(client.repo, data)
        fault = program.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=2_000_000))
        exchange = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
        assert exchange.read(1000) == data[:1000]
        os.kill(program.pid, signal.SIGTERM)
        program.wait_for_log("stopping: 1 downloads are running, for at most 30 seconds")
        program.hub.faults.remove(fault)
        assert exchange.finish().body == data[1000:]
        exchange.close()
        assert program.wait_for_exit() == 0
        assert "0 downloads were cut" in program.log


def test_program_runs_as_one_process(tmp_path: Path) -> None:
    with untested_program(tmp_path, hubcache_workers="2") as program:
        assert program.client("mirror").request("GET", "/v2/").status == 200
        assert program.client("proxy").request("GET", "/v2/").status == 401
        assert "one worker only" in program.log
