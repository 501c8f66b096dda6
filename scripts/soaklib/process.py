"""The program under test as a tree of processes: reads its memory, descriptors and tasks, and kills processes."""

import contextlib
import http.client
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from support.program import Program


@dataclass(frozen=True)
class Sample:
    """What the processes used at one moment."""

    at: float
    """The moment on the monotonic clock, in seconds."""
    memory: int
    """Bytes of all processes; memory that processes share counts once (PSS)."""
    descriptors: int
    """Open file descriptors of all processes."""
    tasks: int
    """Tasks in the event loop of the process that owns the store."""


def children(pid: int) -> list[int]:
    """The process ids of all descendants of a process."""
    try:
        own = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    except FileNotFoundError:
        return []
    return own + [below for child in own for below in children(child)]


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []


def sample(program: Program) -> Sample | None:
    """Measure the program and its workers; None while the program or one of its workers starts or ends."""
    at = time.monotonic()
    pids = _pids(program)
    if not pids:
        return None
    try:
        memory = sum(map(_memory, pids))
        descriptors = sum(1 for pid in pids for _ in Path(f"/proc/{pid}/fd").iterdir())
        return Sample(at, memory, descriptors, int(program.metric("hubcache_tasks")))
    except (OSError, _ProcessEndedError, http.client.IncompleteRead):
        return None


def memory_of(program: Program) -> int | None:
    """Bytes of memory of the program and its workers; None while one of them ends.

    It does not ask the program itself, which may be too busy to answer.
    """
    try:
        return sum(map(_memory, _pids(program))) or None
    except (OSError, _ProcessEndedError):
        return None


class _ProcessEndedError(Exception):
    """A process that has ended, and still has its entry in /proc, has no memory."""


def _pids(program: Program) -> list[int]:
    try:
        pid = program.pid
    except AssertionError:  # the program is not running
        return []
    return [pid, *children(pid)]


def _memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise _ProcessEndedError(pid)


def kill(pid: int) -> None:
    """Send SIGKILL to a process, unless it has already ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
