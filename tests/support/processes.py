"""Programs that the tests start: looked for, run with a time limit, and never left behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from support.required import missing


def require(*programs: str) -> None:
    """Skip the test, or fail it in CI, unless all *programs* are installed."""
    if absent := [program for program in programs if shutil.which(program) is None]:
        missing(f"not installed: {', '.join(absent)}")


def require_root() -> None:
    """Skip the test, or fail it in CI, unless it runs as root."""
    if os.geteuid() != 0:
        missing("needs root")


def accepts(address: int | Path) -> bool:
    """Whether something listens on a port of 127.0.0.1 or on a unix socket."""
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    with socket.socket(family) as probe:
        probe.settimeout(1)
        target = ("127.0.0.1", address) if isinstance(address, int) else str(address)
        return probe.connect_ex(target) == 0


def wait_for(done: Callable[[], object], seconds: float, what: str) -> None:
    """Return as soon as *done* is true; TimeoutError after so many *seconds*."""
    limit = time.monotonic() + seconds
    while not done():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    fails: bool = False,
    stdin: str = "",
) -> str:
    """Standard output of a program that must succeed, or with *fails* must not; its messages are in the failure."""
    arguments = [str(part) for part in command]
    environment = plain_environment() | dict(env or {})
    done = subprocess.run(
        arguments, env=environment, timeout=timeout, capture_output=True, text=True, errors="replace", input=stdin
    )
    if (done.returncode != 0) is not fails:
        pytest.fail(
            f"{' '.join(arguments)}\nexit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


def plain_environment() -> dict[str, str]:
    """The environment without any proxy or certificate settings of the machine."""
    unwanted = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_dir", "ssl_cert_file"}
    return {name: value for name, value in os.environ.items() if name.lower() not in unwanted}


class Daemon:
    """A long-running program in a process group of its own, with its output in a file."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.env = plain_environment() | dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], object], seconds: float = 30) -> None:
        """Start it and wait until it is ready; an early exit fails with the end of its output."""
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

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self, seconds: float = 20) -> None:
        """Ask it to end, and kill what is left of its group."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None
