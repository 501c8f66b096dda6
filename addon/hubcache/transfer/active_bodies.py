"""The number of bodies that are being sent, and the chunk size that follows from it."""

from collections.abc import Iterator
from contextlib import contextmanager

_MAX_CHUNK_BYTES = 32 << 20
"""Bytes of the chunks of all bodies together. One chunk per body is in memory, and a second one while it is
encrypted."""

_MIN_CHUNK = 64 << 10
"""Smallest chunk in bytes, for any number of bodies."""


class ActiveBodies:
    """Counts the bodies that one process is sending at the moment."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one more body while the context is open."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def chunk_size(self, most: int) -> int:
        """Return the size of a body's next chunk: at most `most` bytes, less when many bodies are being sent."""
        share = _MAX_CHUNK_BYTES // max(1, self.count)
        return min(most, max(_MIN_CHUNK, 1 << share.bit_length() - 1))
