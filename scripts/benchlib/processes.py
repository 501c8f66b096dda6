"""Starts and stops the programs of a run, and measures CPU time and memory of their process trees."""

import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


class BenchError(Exception):
    """A measurement is not possible. The message is for the user."""


@contextmanager
def running(
    command: Sequence[object],
    directory: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    seconds: float = 20.0,
) -> Iterator[int]:
    """Run a program during the block, and yield its process id as soon as `ready()` returns true.

    The program has its own session: Ctrl-C reaches only the benchmark, which then stops the program and all its
    children. If setpriv is installed, the kernel also stops the program when the benchmark is killed. The user's
    settings of AWS clients do not reach the program. Raises `BenchError` if it is not ready after `seconds`.
    """
    prefix = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    log = directory / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, *(str(part) for part in command)],
            cwd=directory,
            env={**_without_aws_settings(os.environ), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, ready, log, seconds)
        yield process.pid
    finally:
        _stop(process)


def _without_aws_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            output = log.read_text(errors="replace").strip()[-2000:]
            raise BenchError(f"{log.parent.name} did not start: {output or 'no output'}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for signal_number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with suppress(ProcessLookupError):  # children that are still running
        os.killpg(process.pid, signal.SIGKILL)


_ports = iter(random.sample(range(20_000, 32_000), 1_000))
"""Below the range of outgoing connections, which could otherwise occupy a port before its server listens."""


def free_port() -> int:
    """A loopback port that is not in use. Each call returns another port."""
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BenchError("no free port")


def listening(*ports: int) -> Callable[[], bool]:
    """A function that returns whether all these loopback ports accept connections."""

    def check() -> bool:
        for port in ports:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return False
        return True

    return check


def process_tree(root: int) -> list[int]:
    """The ids of a process and of all its descendants."""
    found = [root]
    for pid in found:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes so far; processes that ended are skipped."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


@dataclass(slots=True)
class Cost:
    """Resources that a process tree used: `cpu` in seconds; `rss` (highest resident size of one process) and `pss`
    (highest proportional size of the whole tree) in bytes."""

    cpu: float = 0.0
    rss: int = 0
    pss: int = 0


@contextmanager
def measured_cost(root: int) -> Iterator[Cost]:
    """Measure a process tree during the block. The yielded values are complete when the block ends.

    The resident size is sampled ten times a second. The proportional size is sampled once a second, because the kernel
    walks through all pages to compute it (at ten samples a second, 2 % of two cores).
    """
    cost = Cost()
    stop = threading.Event()

    def sample() -> None:
        for number in itertools.count():
            pids = process_tree(root)
            cost.rss = max(cost.rss, *map(_rss, pids))
            if number % 10 == 0:
                cost.pss = max(cost.pss, sum(map(_pss, pids)))
            if stop.wait(0.1):
                return

    before = cpu_seconds(process_tree(root))
    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield cost
    finally:
        stop.set()
        sampler.join()
        cost.cpu = cpu_seconds(process_tree(root)) - before


def _rss(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _pss(pid: int) -> int:
    with suppress(OSError):
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return int(found[1]) << 10 if found else 0
    return 0
