"""A number in memory that all processes share: while it stays the same, what the owner answered a moment ago holds."""

import mmap
import struct
from pathlib import Path
from typing import Self

_NUMBER = struct.Struct("=Q")


class Epoch:
    """Written by the owner, read by its workers: at each request, which a message about each change could not do."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def create(cls, path: Path) -> Self:
        """The owner's; the file is only there to be found."""
        path.write_bytes(bytes(_NUMBER.size))
        with path.open("r+b") as file:
            return cls(mmap.mmap(file.fileno(), _NUMBER.size))

    @classmethod
    def find(cls, path: Path) -> Self:
        """A worker's."""
        with path.open("rb") as file:
            return cls(mmap.mmap(file.fileno(), _NUMBER.size, access=mmap.ACCESS_READ))

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
