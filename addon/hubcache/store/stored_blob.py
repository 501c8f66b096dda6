"""An open stored blob, and how a file of the store is opened."""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DAMAGE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV})
"""Errors that mean that the file is damaged: the disk cannot read it, or it is a link, a socket, a FIFO or a device."""


@dataclass(slots=True)
class StoredBlob:
    """An open stored blob, to be closed after use. Its bytes stay readable even if the blob is removed."""

    fd: int
    size: int
    path: Path
    _release: Callable[[], None]
    unreadable: Callable[[], None] = lambda: None
    """To be called when a read failed: the blob is then verified before it is served again."""

    def close(self) -> None:
        """Close the file; it may be evicted again when no other reader has it open."""
        os.close(self.fd)
        self._release()


def open_regular(path: Path) -> int:
    """Open a file for reading; raises `OSError`, with an errno in `DAMAGE` for anything but a regular file.

    Without O_NONBLOCK, opening a FIFO would block the event loop until there is a writer.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd
