"""Starting and surely ending the programs of a run, and what they cost: CPU and memory of whole process trees."""

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
    """Something that a measurement needs does not work; the text says what."""


@contextmanager
def running(
    command: Sequence[object],
    directory: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    seconds: float = 20.0,
) -> Iterator[int]:
    """Run a program until the block ends; gives its process id as soon as `ready()`.

    It gets a session of its own, so that Ctrl-C reaches only the benchmark, which then ends it and all its children;
    where there is setpriv, the kernel ends it too when the benchmark itself is killed.
    """
    tied = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    log = directory / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*tied, *(str(part) for part in command)],
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await(process, ready, log, seconds)
        yield process.pid
    finally:
        _end(process)


def _await(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()[-2000:]
            raise BenchError(f"{log.parent.name} did not start: {said or 'it said nothing'}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    for signal_number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with suppress(ProcessLookupError):  # children that outlived their parent
        os.killpg(process.pid, signal.SIGKILL)


_ports = iter(random.sample(range(20_000, 32_000), 1_000))
"""Below those of outgoing connections, which would take one before who is to listen does."""


def free_port() -> int:
    """A loopback port that nobody listens on at the moment, and that is given once."""
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BenchError("no free port")


def listening(*ports: int) -> Callable[[], bool]:
    """Whether all these loopback ports accept connections."""

    def check() -> bool:
        for port in ports:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return False
        return True

    return check


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    found = [root]
    for pid in found:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time that living processes have used so far."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


@dataclass(slots=True)
class Cost:
    """What a server used while it was watched: `cpu` in seconds; `rss` is the largest process's peak and `pss` the
    peak of all together, in bytes."""

    cpu: float = 0.0
    rss: int = 0
    pss: int = 0


@contextmanager
def watched(root: int) -> Iterator[Cost]:
    """Watch a process tree; the figures are complete when the block ends.

    Resident memory is sampled ten times a second. The proportional one costs a walk through all pages, more in a large
    process than in a small one (2 % of two cores, ten times a second): once a second.
    """
    cost = Cost()
    stop = threading.Event()

    def sample() -> None:
        for number in itertools.count():
            pids = tree(root)
            cost.rss = max(cost.rss, *map(_rss, pids))
            if number % 10 == 0:
                cost.pss = max(cost.pss, sum(map(_pss, pids)))
            if stop.wait(0.1):
                return

    before = cpu_seconds(tree(root))
    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield cost
    finally:
        stop.set()
        sampler.join()
        cost.cpu = cpu_seconds(tree(root)) - before


def _rss(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _pss(pid: int) -> int:
    with suppress(OSError):
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return int(found[1]) << 10 if found else 0
    return 0
