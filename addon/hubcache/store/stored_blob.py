"""A stored blob that is open, and how a file of the store is opened."""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DAMAGE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV})
"""Errors that are the file's own: the disk cannot read it, or it is a link, a socket, a FIFO or a device."""


@dataclass(slots=True)
class StoredBlob:
    """An open stored blob; `close` it when sent. Its bytes stay readable even if it is removed meanwhile."""

    fd: int
    size: int
    path: Path
    _release: Callable[[], None]
    unreadable: Callable[[], None] = lambda: None
    """To be called when reading it failed: it is verified before it is served again."""

    def close(self) -> None:
        """Give the file back."""
        os.close(self.fd)
        self._release()


def open_regular(path: Path) -> int:
    """Open a file for reading; raises `OSError`, with an errno in `DAMAGE` for anything but a regular file.

    Opening a FIFO would wait for a writer, and the event loop with it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd
