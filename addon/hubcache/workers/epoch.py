"""A number in memory that all processes share: cached answers are valid while it stays the same."""

import mmap
import struct
import tempfile
from typing import BinaryIO, Self

_NUMBER = struct.Struct("=Q")


class Epoch:
    """Written by the owner, read by its workers at each request: a message about each change would arrive too late."""

    def __init__(self, memory: mmap.mmap, file: BinaryIO | None = None) -> None:
        self._memory = memory
        self._file = file

    @classmethod
    def create(cls) -> Self:
        """Return the owner's epoch, in an unnamed file, which disappears with the owner even if it is killed."""
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.truncate(_NUMBER.size)
        return cls(mmap.mmap(file.fileno(), _NUMBER.size), file)

    @classmethod
    def attach(cls, descriptor: int) -> Self:
        """Return a worker's epoch, from the descriptor that the worker inherited from the owner."""
        return cls(mmap.mmap(descriptor, _NUMBER.size, access=mmap.ACCESS_READ))

    def fileno(self) -> int:
        """Return the descriptor that workers inherit."""
        assert self._file is not None
        return self._file.fileno()

    @property
    def number(self) -> int:
        """The current number, which differs from all earlier ones after a change."""
        return int(_NUMBER.unpack_from(self._memory)[0])

    def advance(self) -> None:
        """Invalidate all cached answers."""
        _NUMBER.pack_into(self._memory, 0, self.number + 1)

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()
        if self._file is not None:
            self._file.close()
