"""Starts mitmdump by a fork of a process that has imported mitmproxy, because that import takes most of a start.

The new process runs the code of the command `mitmdump`, with the same arguments, environment, directory and output.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.processes import plain_environment

MITMDUMP = Path(sys.executable).with_name("mitmdump")
_LAUNCHER = Path(__file__).with_name("mitmdump_launcher.py")


class ForkedMitmdump:
    """A mitmdump that the launcher forked, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, report: int) -> None:
        """`report` is a descriptor from which the process id, and later the exit code, are read."""
        self._report = os.fdopen(report, "rb")
        self.pid = int(self._report.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._report, select.POLLIN)
            if not ended.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("mitmdump", timeout or 0)
            self.returncode = int(self._report.readline())
            self._report.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)


class Launcher:
    """The process that forks; it ends with this one."""

    def __init__(self) -> None:
        self._environment = _environment()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(_LAUNCHER), str(MITMDUMP.parent), str(theirs.fileno())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def starts(self, command: Sequence[str]) -> bool:
        """Whether the command is mitmdump, in the environment that the launcher has."""
        return command[0] == str(MITMDUMP) and self._environment == _environment()

    def start(self, command: Sequence[str], output: int) -> ForkedMitmdump:
        """Start the command, with its output at a descriptor."""
        request = json.dumps({"command": list(command), "directory": str(Path.cwd())})
        report, theirs = os.pipe()
        try:
            socket.send_fds(self._requests, [request.encode()], [output, theirs])
        finally:
            os.close(theirs)
        return ForkedMitmdump(report)

    def close(self) -> None:
        self._requests.close()
        self._process.wait()


def _environment() -> dict[str, str]:
    """Return the environment of programs, without the name of the test, which pytest adds."""
    return {name: value for name, value in plain_environment().items() if name != "PYTEST_CURRENT_TEST"}


@functools.cache
def launcher() -> Launcher:
    """Return the launcher of this process."""
    started = Launcher()
    atexit.register(started.close)
    return started
