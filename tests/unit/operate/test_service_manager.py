"""Datagrams to the service manager."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubcache.operate.service_manager import SOCKET, ServiceManager


@pytest.fixture(params=["path", "abstract"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has it, and the name of it in the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@hubcache-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0" + name[1:] if name.startswith("@") else name)
        bound.settimeout(10)
        yield bound, name


def lines(receiver: socket.socket) -> list[str]:
    return receiver.recv(4096).decode().split("\n")


def test_life_of_a_service_is_reported(receiver: tuple[socket.socket, str]) -> None:
    bound, name = receiver
    manager = ServiceManager({SOCKET: name})
    manager.ready("mirror at *:5000")
    assert lines(bound) == ["READY=1", "STATUS=mirror at *:5000"]
    manager.reloading()
    reloading, clock = lines(bound)
    assert reloading == "RELOADING=1"
    assert int(clock.removeprefix("MONOTONIC_USEC=")) > 0
    manager.stopping(30)
    assert lines(bound) == ["STOPPING=1", "STATUS=Waiting for running downloads", "EXTEND_TIMEOUT_USEC=45000000"]
    manager.close()


async def test_watchdog_is_reset_again_and_again_until_the_end(receiver: tuple[socket.socket, str]) -> None:
    bound, name = receiver
    manager = ServiceManager({SOCKET: name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
    manager.ready("")
    manager.ready("")  # after a reload
    bound.setblocking(False)
    got = [await asyncio.get_running_loop().sock_recv(bound, 4096) for _ in range(5)]
    assert got.count(b"WATCHDOG=1") == 3
    manager.close()
    assert manager._timer is not None
    assert manager._timer.cancelled()


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9000", "WATCHDOG_PID": "1"}]
)
def test_no_watchdog_or_that_of_another_process_is_not_reset(
    receiver: tuple[socket.socket, str], watchdog: dict[str, str]
) -> None:
    bound, name = receiver
    ServiceManager({SOCKET: name} | watchdog).ready("")  # without an event loop, setting a timer would fail
    assert lines(bound) == ["READY=1", "STATUS="]
    bound.setblocking(False)
    with pytest.raises(BlockingIOError):
        bound.recv(4096)


@pytest.mark.parametrize("name", ["", "vsock:2:1234"])
def test_without_a_unix_socket_nothing_is_sent(name: str, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({SOCKET: name, "WATCHDOG_USEC": "20000"}).ready("")
    assert caplog.records == []


def test_report_that_cannot_be_sent_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({SOCKET: str(tmp_path / "missing")}).ready("")
    (record,) = caplog.records
    assert record.getMessage().startswith("hubcache: the service manager did not get READY=1: ")


def test_receiver_whose_queue_is_full_does_not_stop_the_program(
    receiver: tuple[socket.socket, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, name = receiver
    monkeypatch.setattr("hubcache.operate.service_manager._SEND_SECONDS", 0.01)
    manager = ServiceManager({SOCKET: name})
    while not caplog.records:
        manager.ready("")
    assert lines(bound)[0] == "READY=1"
