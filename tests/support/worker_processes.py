"""The worker processes of a running program."""

import contextlib
import resource
import signal
from pathlib import Path

from support.http_client import wait_until
from support.program import Program


def workers_of(pid: int) -> set[int]:
    """Return the process ids of the workers among the children of a process."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after_name[1]) == pid and b"worker.py" in command:
            found.add(int(path.parent.name))
    return found


def at_work(program: Program) -> bool:
    """Whether two workers run and have connected to their owner."""
    return program.metric("hubcache_workers") == 2 and len(workers_of(program.pid)) == 2


def crash(program: Program) -> None:
    """End the program with SIGKILL, and wait until its workers have ended and its ports are free."""
    workers = workers_of(program.pid)
    program.stop(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), what="the end of the workers")


def processes_of(program: Program) -> set[int]:
    """Return the process ids of the program and of its workers."""
    return {program.pid, *workers_of(program.pid)}


def resident_bytes(program: Program) -> int:
    """Return the resident memory of the program and its workers."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes_of(program)]
    return sum(pages) * resource.getpagesize()


def open_sockets(program: Program) -> int:
    """Return how many sockets the program and its workers have open."""
    count = 0
    for pid in processes_of(program):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                count += str(descriptor.readlink()).startswith("socket:")
    return count
