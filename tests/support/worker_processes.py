"""The worker processes of a running program."""

from pathlib import Path

from support.program import Program


def workers_of(pid: int) -> set[int]:
    """Child processes that are workers."""
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
    return program.metric("hubcache_workers") == 2 and len(workers_of(program.pid)) == 2
