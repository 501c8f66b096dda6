"""Where damaged content is put aside, for people to look at: a few files, of which the oldest go first.

What is here counts towards the cap of the store. Nothing in here is ever served.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..oci.digest import Digest
from ..oci.errors import StorageError
from .usage import on_disk

MAX_FILES = 10
MAX_BYTES = 1 << 30
"""Or a tenth of the store's capacity, where that is less."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Stored content that was found damaged: when (seconds since the epoch), why, and which file it was in.

    `kept` is where it was moved; None when it was too large, or gone.
    """

    at: float
    digest: Digest
    why: str
    path: Path | None
    kept: Path | None


class Quarantine:
    """A folder. `most` is how many bytes it may hold after `trim`. For one thread at a time; raises `StorageError`."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.most = MAX_BYTES
        self._directory = directory
        self._clock = clock

    def move(self, path: Path, digest: Digest) -> Path | None:
        """Move a file here, whatever kind it is; None when it is gone, or too large and therefore removed."""
        try:
            if on_disk(path.lstat().st_size) > self.most:
                path.unlink()
                return None
            target = self._place(digest)
            path.rename(target)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot put damaged content aside: {error}") from error
        return target

    def put(self, data: bytes, digest: Digest) -> Path | None:
        """Write content here that was in a row; None when it is too large."""
        if on_disk(len(data)) > self.most:
            return None
        target = self._place(digest)
        try:
            target.write_bytes(data)
        except OSError as error:
            raise StorageError(f"cannot put damaged content aside: {error}") from error
        return target

    def _place(self, digest: Digest) -> Path:
        """A name for a new file; names are in the order of time."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot put damaged content aside: {error}") from error
        return self._directory / f"{int(self._clock() * 1000):014d}.{digest.algorithm}.{digest.hex}"

    def trim(self) -> int:
        """Remove the oldest files beyond the limits; returns the bytes of those that stay."""
        try:
            with os.scandir(self._directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name, reverse=True)
            total = count = 0
            for entry in found:
                size = on_disk(entry.stat(follow_symlinks=False).st_size)
                if count >= MAX_FILES or total + size > self.most:
                    _remove(entry)
                    continue
                total, count = total + size, count + 1
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(f"cannot look at damaged content: {error}") from error
        return total


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)
    else:
        Path(entry.path).unlink()
