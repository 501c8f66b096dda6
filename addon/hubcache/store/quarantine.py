"""The quarantine: a folder that keeps the latest damaged content for examination, and is never served from.

Its files count towards the cap of the store.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ..oci.digest import Digest
from ..oci.errors import StorageError
from .usage import size_on_disk

MAX_FILES = 10
MAX_BYTES = 1 << 30
"""The limit is a tenth of the store's capacity where that is less."""


class Quarantine:
    """A folder of at most `MAX_FILES` files and `max_bytes` bytes after `trim`.

    To be used by one thread at a time; raises `StorageError`.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.max_bytes = MAX_BYTES
        self._directory = directory
        self._clock = clock

    def move(self, path: Path, digest: Digest) -> Path | None:
        """Move a file of any type here; return its new path, or None when it is missing, or too large and removed."""
        try:
            if size_on_disk(path.lstat().st_size) > self.max_bytes:
                path.unlink()
                return None
            target = self._new_path(digest)
            path.rename(target)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot quarantine damaged content: {error}") from error
        return target

    def write(self, data: bytes, digest: Digest) -> Path | None:
        """Write the content of a row to a file here; return its path, or None when it is too large."""
        if size_on_disk(len(data)) > self.max_bytes:
            return None
        target = self._new_path(digest)
        try:
            target.write_bytes(data)
        except OSError as error:
            raise StorageError(f"cannot quarantine damaged content: {error}") from error
        return target

    def _new_path(self, digest: Digest) -> Path:
        """Return the path for a new file; the order of names is the order of time."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot quarantine damaged content: {error}") from error
        return self._directory / f"{int(self._clock() * 1000):014d}.{digest.algorithm}.{digest.hex}"

    def trim(self) -> int:
        """Remove the oldest files beyond the limits; return the bytes of those that stay."""
        try:
            with os.scandir(self._directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name, reverse=True)
            total = count = 0
            for entry in found:
                size = size_on_disk(entry.stat(follow_symlinks=False).st_size)
                if count >= MAX_FILES or total + size > self.max_bytes:
                    _remove(entry)
                    continue
                total, count = total + size, count + 1
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(f"cannot list the quarantine: {error}") from error
        return total


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)
    else:
        Path(entry.path).unlink()
