"""The program as a service of systemd."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.program import Program
from support.standin import Hub


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd receives reports."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.settimeout(30)
        yield bound


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_reports_start_reload_and_stop_once(
    tmp_path: Path, hub: Hub, systemd: socket.socket, workers: str
) -> None:
    program = Program(tmp_path, hub, {"hubcache_workers": workers})
    program.environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000000"}
    program.launch()
    try:
        addresses = f"STATUS=proxy at 127.0.0.1:{program.proxy}, mirror at 127.0.0.1:{program.mirror}"
        assert systemd.recv(4096).decode().split("\n") == ["READY=1", addresses]
        assert systemd.recv(4096) == b"WATCHDOG=1"
        assert program.client("mirror").request("GET", "/v2/").status == 200
        os.kill(program.pid, signal.SIGHUP)
        assert systemd.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(4096).startswith(b"READY=1\n")
        assert "hubcache: SIGHUP: " in program.log
    finally:
        program.stop()
    assert systemd.recv(4096).startswith(b"STOPPING=1\n")
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)
    program.assert_no_errors()


def test_service_manager_that_is_gone_does_not_stop_the_program(tmp_path: Path, hub: Hub) -> None:
    program = Program(tmp_path, hub, {})
    program.environment = {"NOTIFY_SOCKET": str(tmp_path / "missing")}
    program.start()
    program.wait_for_log("the service manager did not get READY=1")
    assert program.client("mirror").request("GET", "/v2/").status == 200
    program.stop()
    program.assert_no_errors()
