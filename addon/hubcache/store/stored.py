"""A stored blob that is open, and whether its file is what was stored."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..oci.digest import Digest
from .disk import is_untouched


@dataclass(slots=True)
class StoredBlob:
    """An open stored blob; `close` it when sent. Its bytes stay readable even if it is removed meanwhile."""

    fd: int
    size: int
    path: Path
    _release: Callable[[], None]

    def close(self) -> None:
        """Give the file back."""
        os.close(self.fd)
        self._release()


async def is_good(fd: int, path: Path, digest: Digest, size: int) -> bool:
    """Whether the file is as it was stored; one that was touched since is verified, which takes a second per GB."""
    state = os.fstat(fd)
    if state.st_size != size:
        return False
    if is_untouched(path, state.st_mtime_ns):
        return True
    with os.fdopen(os.dup(fd), "rb") as file:
        found = await asyncio.to_thread(hashlib.file_digest, file, digest.algorithm)
    return found.hexdigest() == digest.hex
