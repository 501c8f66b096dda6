"""The store's directory: its lock, its staging folder, and the version of its format."""

import contextlib
import fcntl
import os
from pathlib import Path

from ..oci.errors import StorageError, StoreTooNew
from .index import Index

FORMAT = 1
"""Version of the rows and files; a store with a higher one is not opened."""


class StoreDirectory:
    """One directory, used by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.staging = path / "staging"
        self._lock_fd: int | None = None

    def open(self) -> Index:
        """Create the directory if needed, lock it and open its index.

        Raises `StoreTooNew`, `StorageError` when another process has it or the index fails, and `OSError`.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock()
        self.staging.mkdir(exist_ok=True, mode=0o700)
        with contextlib.ExitStack() as stack:
            index = Index(self.path / "store")
            stack.callback(index.close)
            self._check_format(index)
            stack.pop_all()  # it stays open
        return index

    def remove_leftovers(self) -> None:
        """Remove files that an earlier process staged and did not commit."""
        for leftover in self.staging.iterdir():
            leftover.unlink()

    def restore_staging(self) -> None:
        """Create the staging folder again if it was deleted. When that fails, staging raises the error."""
        with contextlib.suppress(OSError):
            self.staging.mkdir(exist_ok=True, mode=0o700)

    @property
    def is_locked(self) -> bool:
        """Whether this process has the lock, and its file is still in place: another process would not see the lock
        on a file that was deleted."""
        path = self.path / "lock"
        return self._lock_fd is not None and path.exists() and os.path.samestat(path.stat(), os.fstat(self._lock_fd))

    def unlock(self) -> None:
        """Let another process use the directory."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _lock(self) -> None:
        if not self.is_locked:
            self.unlock()
        if self._lock_fd is None:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise StorageError(f"store directory {self.path} is in use by another process") from error
            self._lock_fd = fd

    def _check_format(self, index: Index) -> None:
        found = index.get("format")
        if found is None:
            index.set("format", str(FORMAT))
        elif not str(found).isdigit() or int(found) > FORMAT:
            raise StoreTooNew(
                f"store {self.path} has format {found}, this program reads up to {FORMAT}: "
                "use the newer program, or another hubcache_dir"
            )
