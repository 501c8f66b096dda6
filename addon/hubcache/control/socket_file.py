"""The file of the control socket: creates it so that only its owner can connect, and replaces a stale one."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ..oci.errors import StorageError

SOCKET_NAME = "hubcache.sock"
"""Name of the socket in the store's directory."""

_MAX_PATH = 100
"""Bytes of a socket's path; Linux permits 107 (unix(7), `sun_path`), macOS 103."""

_BACKLOG = 16


class SocketFile:
    """The listening Unix socket in one directory, mode 0600. Only the process that has the store's lock opens it, so
    that a socket which is already there was left by a process that was killed.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / SOCKET_NAME
        self._identity: tuple[int, int] | None = None

    def open(self) -> socket.socket:
        """Return the listening socket; raises `StorageError` when it cannot be created.

        No other user can connect at any moment: the mode is set before `listen`, and until then the kernel refuses all
        connections.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._check_directory()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            with short_path(self.path) as address:
                listener.bind(address)
                Path(address).chmod(0o600)
            state = self.path.lstat()
            self._identity = state.st_dev, state.st_ino
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise StorageError(f"cannot open the control socket {self.path}: {error.strerror or error}") from error
        except StorageError:
            listener.close()
            raise
        return listener

    def _check_directory(self) -> None:
        """Raise `StorageError` for a directory in which other users can replace the socket by one of their own."""
        mode = self.path.parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise StorageError(
                f"the control socket is not opened: all users may write to {self.path.parent}; "
                f"change that with chmod o-w {self.path.parent}"
            )

    @property
    def is_in_place(self) -> bool:
        """Whether the file is the one that `open` created, and was not deleted or replaced."""
        try:
            state = self.path.lstat()
        except OSError:
            return False
        return (state.st_dev, state.st_ino) == self._identity

    def remove(self) -> None:
        """Remove the file that `open` created."""
        if self.is_in_place:
            with contextlib.suppress(OSError):  # a directory that cannot be written: the next start replaces the file
                self.path.unlink()
        self._identity = None


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Provide a name of the file that fits into a socket's address, however long its directory's path is."""
    if len(os.fsencode(path)) <= _MAX_PATH:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
