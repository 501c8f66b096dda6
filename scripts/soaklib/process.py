"""The program under test as a tree of processes: memory, descriptors, and how it is killed."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from support.program import Program


@dataclass(frozen=True)
class Sample:
    """What the processes used at a moment: bytes of memory, open descriptors, and the owner's tasks."""

    memory: int
    descriptors: int
    tasks: int


def children(pid: int) -> list[int]:
    """The processes that this one started, and those that they did."""
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
    """Of the program with its workers; None while one of its processes ends."""
    memory = descriptors = 0
    try:
        for each in (program.pid, *children(program.pid)):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            memory += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
            descriptors += sum(1 for _ in Path(f"/proc/{each}/fd").iterdir())
        return Sample(memory, descriptors, int(program.metric("hubcache_tasks")))
    except (OSError, StopIteration, AssertionError):
        return None


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
