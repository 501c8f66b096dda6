"""Reading a stored file to see whether it holds what its digest says."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..oci.digest import Digest
from ..oci.errors import ContentDamaged
from .stored_blob import DAMAGE, open_regular

PIECE = 1 << 20
"""Bytes read at once."""


@dataclass(slots=True)
class Scrubbed:
    """What was verified unasked since the start, when all of it was for the last time (seconds since the epoch), and
    which part of it is done by now."""

    objects: int = 0
    bytes: int = 0
    finished_at: float | None = None
    progress: float = 0.0


class FileCheck:
    """Verifies one file piece by piece, in whatever thread. Between two pieces the file is not open, so that the disk
    has the room of one that is evicted meanwhile.

    `from_disk` drops the file's pages from the page cache before they are read, for what is to be verified is the disk,
    and again after, so that reading everything does not displace what is read often.
    """

    def __init__(self, path: Path, digest: Digest, size: int, *, from_disk: bool = False) -> None:
        self.at = 0
        self._path = path
        self._digest = digest
        self._size = size
        self._from_disk = from_disk
        self._hash = hashlib.new(digest.algorithm)

    def step(self) -> bool:
        """Read the next piece; returns whether there is more.

        Raises `ContentDamaged` when the file does not hold the content or the disk cannot read it, and other errors
        (`FileNotFoundError`, no descriptors) as `OSError`.
        """
        try:
            data = self._read()
        except OSError as error:
            if error.errno not in DAMAGE:
                raise
            raise ContentDamaged(f"cannot be read: {error.strerror or error}") from error
        self.at += len(data)
        self._hash.update(data)
        if data and self.at < self._size:
            return True
        if self._hash.hexdigest() != self._digest.hex:
            raise ContentDamaged("does not match its digest")
        return False

    def _read(self) -> bytes:
        fd = open_regular(self._path)
        try:
            size = os.fstat(fd).st_size
            if size != self._size:
                raise ContentDamaged(f"has {size} bytes instead of {self._size}")
            if self._from_disk:
                os.posix_fadvise(fd, self.at, PIECE, os.POSIX_FADV_DONTNEED)
            data = os.pread(fd, PIECE, self.at)
            if self._from_disk:
                os.posix_fadvise(fd, self.at, PIECE, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        return data
