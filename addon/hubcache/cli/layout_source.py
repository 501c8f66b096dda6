"""Reads the files of an OCI image layout from a directory or a tar archive (OCI image-spec, image-layout.md)."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, Protocol

from ..oci.digest import Digest
from .tar_index import ArchiveError, index_tar

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Part(RawIOBase):
    """`size` bytes of a file from `offset`, to be read once."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._left = size
        file.seek(offset)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most `size`; raises `ArchiveError` when the file has become shorter."""
        count = self._left if size < 0 else min(size, self._left)
        data = self._file.read(count)
        if len(data) < count:
            raise ArchiveError("it became shorter while it was read")
        self._left -= count
        return data


class LayoutSource(Protocol):
    """The files of a layout, by their names relative to its top. Methods raise `ArchiveError`."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None where there is no such file."""

    def open(self, name: str) -> Part:
        """Return the bytes of a file; it is valid until the next call of `open`."""


class TarSource:
    """A layout in a tar archive."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.read(4)
        if start.startswith((_GZIP, _ZSTD)):
            raise ArchiveError("it is compressed: decompress it first; layers are compressed already")
        self._entries = index_tar(file)

    def size(self, name: str) -> int | None:
        entry = self._entries.get(name)
        return None if entry is None else entry.size

    def open(self, name: str) -> Part:
        entry = self._entries[name]
        return Part(self._file, entry.offset, entry.size)


class DirectorySource:
    """A layout in a directory. Files that are links, devices or pipes are refused."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: BinaryIO | None = None

    def size(self, name: str) -> int | None:
        try:
            state = (self._path / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(state.st_mode):
            raise ArchiveError(f"{name} is not a regular file")
        return state.st_size

    def open(self, name: str) -> Part:
        self.close()
        fd = os.open(self._path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        self._opened = os.fdopen(fd, "rb")
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise ArchiveError(f"{name} is not a regular file")
        return Part(self._opened, 0, state.st_size)

    def close(self) -> None:
        """Close the file that was opened last."""
        if self._opened is not None:
            self._opened.close()


@contextmanager
def open_layout(path: Path) -> Iterator[LayoutSource]:
    """Open a directory or an archive; raises `ArchiveError` whose message begins with the path."""
    try:
        if path.is_dir():
            source = DirectorySource(path)
            try:
                yield source
            finally:
                source.close()
        else:
            with path.open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ArchiveError("it is neither a directory nor a regular file")
                yield TarSource(file)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from error
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}") from error


def blob_name(digest: Digest) -> str:
    """Return the name of content in a layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"
