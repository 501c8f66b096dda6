"""Mounts below a test's workspace."""

import subprocess
from pathlib import Path

from support.processes import run


def _mount(*arguments: str | Path) -> bool:
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def mount_memory(directory: Path) -> None:
    """Keep `directory` in memory where that is permitted: flushing layers to disk takes most of a pull's time."""
    _mount("-t", "tmpfs", "-o", "size=4g,mode=0700", "tmpfs", directory)


def overlay_works(workspace: Path) -> bool:
    """Whether overlay mounts work in `workspace`. Other storage drivers copy whole file systems and are much slower."""
    lower, upper, work, merged = (workspace / "overlay-probe" / part for part in ("lower", "upper", "work", "merged"))
    for part in (lower, upper, work, merged):
        part.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", merged):
        return False
    run("umount", merged)
    return True


def unmount(workspace: Path) -> None:
    """Undo every mount at or below `workspace`, so that it can be removed."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    below = [mount for mount in mounts if mount == str(workspace) or mount.startswith(f"{workspace}/")]
    for mount in sorted(below, reverse=True):
        run("umount", "--lazy", mount)
