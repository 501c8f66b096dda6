"""Verifies that a stored file matches its digest."""

import hashlib
import os
from pathlib import Path

from ..oci.digest import Digest
from ..oci.errors import ContentDamaged
from .stored_blob import DAMAGE, open_regular

PIECE = 1 << 20
"""Bytes read in one step."""


class FileCheck:
    """Verifies one file in steps of one piece, in any thread. The file is not open between two steps, so that the disk
    space of a file that is evicted during the check is freed.

    `from_disk` drops the file's pages from the page cache before they are read, because the disk is to be verified, and
    again afterwards, so that reading every file does not displace pages that are read often.
    """

    def __init__(self, path: Path, digest: Digest, size: int, *, from_disk: bool = False) -> None:
        self.offset = 0
        self._path = path
        self._digest = digest
        self._size = size
        self._from_disk = from_disk
        self._hash = hashlib.new(digest.algorithm)

    def step(self) -> bool:
        """Read the next piece; return whether there are more.

        Raises `ContentDamaged` when the file does not match or the disk cannot read it, and `OSError` for other errors
        (a missing file, no free descriptors).
        """
        try:
            data = self._read()
        except OSError as error:
            if error.errno not in DAMAGE:
                raise
            raise ContentDamaged(f"cannot be read: {error.strerror or error}") from error
        self.offset += len(data)
        self._hash.update(data)
        if data and self.offset < self._size:
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
                os.posix_fadvise(fd, self.offset, PIECE, os.POSIX_FADV_DONTNEED)
            data = os.pread(fd, PIECE, self.offset)
            if self._from_disk:
                os.posix_fadvise(fd, self.offset, PIECE, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        return data
