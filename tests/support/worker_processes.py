"""The worker processes of a running program."""

from pathlib import Path

from support.program import Rig


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


def at_work(rig: Rig) -> bool:
    return rig.product.metric("hubcache_workers") == 2 and len(workers_of(rig.product.pid)) == 2
