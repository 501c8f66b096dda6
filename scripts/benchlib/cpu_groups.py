"""Limits the CPU time of programs by control groups of the Linux kernel.

The sources of the rules are `sched-bwc.rst` (version 1) and `cgroup-v2.rst` in the kernel's documentation.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .processes import BenchError

PERIOD_MICROSECONDS = 10_000
"""A group that has used its quota waits until the next period begins: short periods make short waits. The kernel's own
period is 100 ms, in which a group of 0.35 cores could do nothing for 65 ms."""

_TIMES_DEFAULT_WEIGHT = 100
"""A group gets its quota even if other programs of this machine are busy."""

_PREFIX = "hubcache-bench"
_REMOVE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The mounted control groups that have the CPU controller; `own` is the group of this process."""

    root: Path
    version: int
    own: Path


@dataclass(frozen=True, slots=True)
class Periods:
    """Periods in which a group ran, and those of them in which it wanted more than its quota."""

    all: int
    throttled: int

    def percent_since(self, before: Self) -> float:
        """Return the percentage of the periods since `before` in which the group wanted more than its quota."""
        return 100 * (self.throttled - before.throttled) / max(self.all - before.all, 1)


@dataclass(frozen=True, slots=True)
class CpuGroup:
    """A group of processes that together may use a limited CPU time."""

    directory: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words that start a command in this group, with the same process id, when they are placed before it."""
        return "sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._processes)

    @property
    def _processes(self) -> Path:
        return self.directory / "cgroup.procs"

    def periods(self) -> Periods:
        """Return the periods so far."""
        lines = (line.split() for line in (self.directory / "cpu.stat").read_text().splitlines())
        values = {name: int(value) for name, value in lines}
        return Periods(values["nr_periods"], values["nr_throttled"])

    @contextmanager
    def containing(self, pids: Sequence[int]) -> Iterator[None]:
        """Move running processes to this group during the block, and then all that it has to the group of this
        process, which started them. A process that ended is skipped. Raises `BenchError`."""
        try:
            for pid in pids:
                _move(pid, self.directory)
            yield
        finally:
            while pids := self.processes():  # again, as these may start others meanwhile
                for pid in pids:
                    _move(pid, find_hierarchy().own)

    def processes(self) -> list[int]:
        """Return the ids of the processes in this group."""
        return [int(line) for line in self._processes.read_text().split()]


@contextmanager
def cpu_group(name: str, cores: float) -> Iterator[CpuGroup]:
    """Make a group that may use `cores` (which may be a fraction) of CPU time during the block.

    At the end, the group is removed, and processes that are still in it are killed. Raises `BenchError` if this kernel
    does not permit such groups.
    """
    hierarchy = find_hierarchy()
    _remove_leftovers(hierarchy)
    directory = hierarchy.root / f"{_PREFIX}-{os.getpid()}-{name}"
    try:
        if hierarchy.version == 2:
            _enable_cpu(hierarchy.root)
        directory.mkdir()
    except OSError as error:
        raise BenchError(f"CPU quotas cannot be set here: {error}") from error
    try:
        limit(directory, hierarchy.version, cores)
        yield CpuGroup(directory)
    finally:
        _remove(CpuGroup(directory))


def find_hierarchy(mounts: Path = Path("/proc/self/mountinfo"), groups: Path = Path("/proc/self/cgroup")) -> Hierarchy:
    """Find the control groups that have the CPU controller; raises `BenchError` if there are none.

    The files are described in `proc_pid_mountinfo(5)` and `cgroups(7)`. A controller is in version 1 or in version 2,
    never in both.
    """
    own = {}
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)  # version 2 has no controllers there
    for line in mounts.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ")[:3]
        mounted, root = fields.split(" ")[3:5]
        if kind == "cgroup" and "cpu" in options.split(","):
            return Hierarchy(Path(root), 1, _group(Path(root), mounted, own["cpu"]))
        controllers_file = Path(root) / "cgroup.controllers"
        if kind == "cgroup2" and controllers_file.exists() and "cpu" in controllers_file.read_text().split():
            return Hierarchy(Path(root), 2, _group(Path(root), mounted, own[""]))
    raise BenchError("CPU quotas cannot be set here: no control groups with the CPU controller are mounted")


def _group(root: Path, mounted: str, path: str) -> Path:
    """Return the directory of a group, where the group `mounted` is at `root`."""
    inside = Path(path)
    return root / (inside.relative_to(mounted) if inside.is_relative_to(mounted) else inside.relative_to("/"))


def _enable_cpu(root: Path) -> None:
    """Permit quotas in the groups below the root of version 2. This remains when the benchmark ends, because groups of
    others may use it then."""
    control = root / "cgroup.subtree_control"
    if "cpu" not in control.read_text().split():
        control.write_text("+cpu")


def limit(directory: Path, version: int, cores: float) -> None:
    """Set the quota of a group of this version; raises `BenchError`."""
    quota = round(cores * PERIOD_MICROSECONDS)
    try:
        if version == 2:
            (directory / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
            (directory / "cpu.weight").write_text(str(_TIMES_DEFAULT_WEIGHT * 100))
        else:
            (directory / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (directory / "cpu.cfs_quota_us").write_text(str(quota))
            (directory / "cpu.shares").write_text(str(_TIMES_DEFAULT_WEIGHT * 1024))
    except OSError as error:
        raise BenchError(f"CPU quotas cannot be set here: {error}") from error


def _move(pid: int, group: Path) -> None:
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except ProcessLookupError:
        return
    except OSError as error:
        raise BenchError(f"a process cannot be moved to {group}: {error}") from error


def _remove(group: CpuGroup) -> None:
    deadline = time.monotonic() + _REMOVE_SECONDS
    while True:
        for pid in group.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            group.directory.rmdir()
        except OSError as error:  # the processes have not ended yet
            if time.monotonic() > deadline:
                raise BenchError(f"a group of processes could not be removed: {error}") from error
            time.sleep(0.05)
        else:
            return


def _remove_leftovers(hierarchy: Hierarchy) -> None:
    """Remove the groups of benchmarks that were killed; one that still has processes cannot be removed."""
    for directory in hierarchy.root.glob(f"{_PREFIX}-*-*"):
        pid = directory.name.removeprefix(f"{_PREFIX}-").partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            with suppress(OSError):
                directory.rmdir()
