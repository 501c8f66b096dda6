"""A number in memory that all processes share: while it stays the same, what the owner answered a moment ago holds."""

import mmap
import struct
import tempfile
from typing import BinaryIO, Self

_NUMBER = struct.Struct("=Q")


class Epoch:
    """Written by the owner, read by its workers: at each request, which a message about each change could not do."""

    def __init__(self, memory: mmap.mmap, file: BinaryIO | None = None) -> None:
        self._memory = memory
        self._file = file

    @classmethod
    def create(cls) -> Self:
        """The owner's, on a file without a name: nothing is left behind of it, however the owner ends."""
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.truncate(_NUMBER.size)
        return cls(mmap.mmap(file.fileno(), _NUMBER.size), file)

    @classmethod
    def find(cls, descriptor: int) -> Self:
        """A worker's, by the owner's descriptor."""
        return cls(mmap.mmap(descriptor, _NUMBER.size, access=mmap.ACCESS_READ))

    def fileno(self) -> int:
        """What workers inherit, to `find` it."""
        assert self._file is not None
        return self._file.fileno()

    @property
    def number(self) -> int:
        """Different from before after any change."""
        return int(_NUMBER.unpack_from(self._memory)[0])

    def advance(self) -> None:
        """Something changed; what is answered from now on is new."""
        _NUMBER.pack_into(self._memory, 0, self.number + 1)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        if self._file is not None:
            self._file.close()
