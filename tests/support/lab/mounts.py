"""Mounts below a test's directory."""

import subprocess
from pathlib import Path

from support.processes import run


def _mount(*arguments: str | Path) -> bool:
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def mount_memory(directory: Path) -> None:
    """Keep *directory* in memory where that can be had: engines flush each layer to disk, most of a pull's time."""
    _mount("-t", "tmpfs", "-o", "size=4g,mode=0700", "tmpfs", directory)


def overlay_works(room: Path) -> bool:
    """Whether overlay mounts work in *room*; the engines' other ways copy whole file systems and take much longer."""
    lower, upper, work, merged = (room / "overlay-probe" / part for part in ("lower", "upper", "work", "merged"))
    for part in (lower, upper, work, merged):
        part.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", merged):
        return False
    run("umount", merged)
    return True


def unmount(room: Path) -> None:
    """Undo every mount at or below *room*, so that it can be removed."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted(
        (mount for mount in mounts if mount == str(room) or mount.startswith(f"{room}/")), reverse=True
    ):
        run("umount", "--lazy", mount)
