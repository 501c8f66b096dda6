"""Checks of the store and of its file system."""

import os
from collections.abc import Iterator

from ..text import counted, percent, size
from .finding import Finding, ok, problem, warning
from .target import Target

SMALL = 1 << 30
"""Bytes of free space below which the store soon has to shrink."""

FEW_INODES = 10_000


def check_store(target: Target) -> Iterator[Finding]:
    """Check whether content is stored, and whether its file system has the space that the options promise."""
    if target.report is None:
        return
    store = target.report["store"]
    if store["problem"]:
        yield problem(
            "store", f"nothing is stored: {store['problem']}", "pulls continue uncached; correct the cause, no restart"
        )
    else:
        used, capacity = store["bytes"], store["capacity"]
        yield ok(
            "store",
            f"{size(used)} of {size(capacity)} ({percent(used, capacity)}), {counted(store['objects'], 'object')}",
        )
    yield from _check_disk(str(store["directory"]), store["capacity"], store["bytes"])


def _check_disk(directory: str, capacity: int, used: int) -> Iterator[Finding]:
    try:
        state = os.statvfs(directory)
    except OSError as error:
        yield problem("disk", f"{directory} cannot be examined: {error.strerror}", "check that its disk is mounted")
        return
    total, free = state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize
    advice = "free space, lower hubcache_size, or move the store with hubcache_dir"
    if state.f_files and state.f_favail < FEW_INODES:
        yield warning("disk", f"only {state.f_favail} inodes are free", "remove small files from this file system")
    if total and capacity > total:
        yield warning(
            "disk", f"hubcache_size is {size(capacity)}, but the file system of the store has {size(total)}", advice
        )
    elif total and free < min(SMALL, total / 20):
        yield warning("disk", f"only {size(free)} of {size(total)} are free: the store shrinks", advice)
    elif capacity - used > free:
        yield warning("disk", f"the store may still grow by {size(capacity - used)}, but {size(free)} are free", advice)
    else:
        yield ok("disk", f"{size(free)} of {size(total)} are free")
