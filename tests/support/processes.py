"""Programs that tests start: one-off commands with a time limit, and daemons that are always stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest


def plain_environment() -> dict[str, str]:
    """Return the environment without the proxy and certificate settings of the machine."""
    unwanted = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_dir", "ssl_cert_file"}
    return {name: value for name, value in os.environ.items() if name.lower() not in unwanted}


def accepts_connections(address: int | Path) -> bool:
    """Whether something listens on a port of 127.0.0.1 or on a Unix socket."""
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    with socket.socket(family) as probe:
        probe.settimeout(1)
        target = ("127.0.0.1", address) if isinstance(address, int) else str(address)
        return probe.connect_ex(target) == 0


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    fails: bool = False,
    stdin: str = "",
    cwd: Path | None = None,
) -> str:
    """Return the standard output of a command that must succeed, or with `fails` the messages of one that must fail.

    The test fails, with all output, when the command ends otherwise.
    """
    arguments = [str(part) for part in command]
    environment = plain_environment() | dict(env or {})
    done = subprocess.run(
        arguments,
        env=environment,
        timeout=timeout,
        capture_output=True,
        text=True,
        errors="replace",
        input=stdin,
        cwd=cwd,
        check=False,
    )
    if (done.returncode != 0) is not fails:
        pytest.fail(
            f"{' '.join(arguments)}\nexit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done.stderr if fails else done.stdout


class Daemon:
    """A long-running program in a new process group, with its output in a file."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.env = plain_environment() | dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], object], seconds: float = 60) -> None:
        """Start the program and wait until it is ready; an early exit fails the test with the end of its output."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                env=self.env,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        limit = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.kill()
                pytest.fail(f"{self.command[0]} did not start:\n{self.output()[-6000:]}")
            time.sleep(0.05)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self, seconds: float = 20) -> None:
        """Send SIGTERM, and kill the rest of the process group after `seconds`."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the whole process group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None
