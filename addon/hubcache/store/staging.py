"""Content that is being stored: a file that grows in the staging folder until it is verified."""

import os
import threading
from pathlib import Path

from ..oci.digest import Digest
from ..oci.errors import StorageError
from .disk import StagedFile


class Staged:
    """One growing file. The fill writes; any number of readers use `fd` at offsets below `written`.

    `reserved` is how many bytes of the store's capacity are reserved for it. Raises `StorageError` when the disk fails.
    """

    def __init__(self, path: Path, digest: Digest, reserved: int) -> None:
        self.path = path
        self.digest = digest
        self.reserved = reserved
        self.written = 0
        self.committed = False
        self._open = threading.Lock()
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise StorageError(f"cannot stage content: {error}") from error

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        try:
            while view:
                with self._open:  # the descriptor must not be closed, and given to another file, in between
                    if self.closed:
                        raise StorageError("staging has ended")
                    count = os.pwrite(self.fd, view, self.written)
                self.written += count
                view = view[count:]
        except OSError as error:
            raise StorageError(f"cannot write staged content: {error}") from error

    def sync(self) -> StagedFile:
        """Write the bytes to the disk; a power cut could otherwise leave a row whose file is empty."""
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise StorageError(f"cannot sync staged content: {error}") from error
        return StagedFile(self.path, self.digest, self.written)

    @property
    def closed(self) -> bool:
        """Whether staging has ended; new readers must then open the stored blob."""
        return self.fd < 0

    def close(self) -> None:
        """Remove the file, or only its staged name if it was committed. Readers that have it open can still read it."""
        with self._open:
            os.close(self.fd)
            self.fd = -1
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:  # the file is removed at the next start
            raise StorageError(f"cannot remove a staged file: {error}") from error
