"""Writes an OCI image layout to a directory or a tar archive (OCI image-spec, image-layout.md).

Content is verified while it is written. The result appears under its name only when it is complete.
"""

import contextlib
import io
import os
import stat
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..oci.digest import Digest, Verifier
from ..oci.errors import BadUpstream
from .errors import CommandError, UsageError
from .layout_source import blob_name
from .oci_layout import DOCKER_FILE, INDEX_FILE, LAYOUT, LAYOUT_FILE

_PIECE = 1 << 20
_PARTIAL = ".partial"


class _Verified(io.RawIOBase):
    """A stream whose bytes are verified while they are read."""

    def __init__(self, stream: BinaryIO, verifier: Verifier) -> None:
        super().__init__()
        self._stream = stream
        self._verifier = verifier

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return as many bytes as are wanted; raises `BadUpstream` when the stream ends too early."""
        data = self._stream.read(size)
        self._verifier.update(data)
        if len(data) < size:
            self._verifier.finish()
        return data


class LayoutTarget(ABC):
    """A layout that is being written; `add` raises `CommandError` for content that does not match its digest."""

    def has(self, digest: Digest, size: int) -> bool:
        """Whether an earlier attempt has written this content, which is verified."""
        return False

    def add(self, digest: Digest, size: int, stream: BinaryIO) -> None:
        """Write content with its size in bytes."""
        verifier = Verifier(digest, size)
        try:
            verified = _Verified(stream, verifier)
            self._write(blob_name(digest), size, verified)
            verified.read(1)  # the stream has ended, or is too long
        except BadUpstream as error:
            raise CommandError(f"the cache sent {digest} damaged or not completely: {error}") from error

    def finish(self, index: bytes, docker: bytes) -> None:
        """Write the index, that for docker, and the file that marks a layout, after all content."""
        for name, data in ((DOCKER_FILE, docker), (LAYOUT_FILE, LAYOUT), (INDEX_FILE, index)):
            self._write(name, len(data), io.BytesIO(data))

    @abstractmethod
    def _write(self, name: str, size: int, stream: BinaryIO | io.RawIOBase) -> None: ...


class _TarTarget(LayoutTarget):
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._folders = set[str]()

    def _write(self, name: str, size: int, stream: BinaryIO | io.RawIOBase) -> None:
        for folder in reversed([str(parent) for parent in Path(name).parents if parent.name]):
            if folder not in self._folders:
                self._folders.add(folder)
                entry = tarfile.TarInfo(f"{folder}/")
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                self._archive.addfile(entry)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o644
        self._archive.addfile(entry, stream)


class _DirectoryTarget(LayoutTarget):
    def __init__(self, path: Path) -> None:
        self._path = path

    def has(self, digest: Digest, size: int) -> bool:
        try:
            with (self._path / blob_name(digest)).open("rb") as file:
                verifier = Verifier(digest, size)
                while data := file.read(_PIECE):
                    verifier.update(data)
                verifier.finish()
        except (FileNotFoundError, BadUpstream):
            return False
        return True

    def add(self, digest: Digest, size: int, stream: BinaryIO) -> None:
        try:
            super().add(digest, size, stream)
        except CommandError:
            (self._path / blob_name(digest)).unlink(missing_ok=True)
            raise

    def _write(self, name: str, size: int, stream: BinaryIO | io.RawIOBase) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while data := stream.read(_PIECE):
                file.write(data)
            file.flush()
            os.fdatasync(file.fileno())


@contextmanager
def open_target(output: str, stdout: BinaryIO) -> Iterator[LayoutTarget]:
    """Provide the target that `--output` names: `-` is an archive on standard output, FILE.tar an archive, else a
    directory. Raises `UsageError` and `CommandError`.

    An unfinished archive is removed. An unfinished directory is kept beside the output, so that the next attempt needs
    only the rest.
    """
    try:
        if output == "-":
            if stdout.isatty():
                raise UsageError("an archive cannot be shown on a terminal: name a file, or write to a pipe")
            with _archive(stdout) as target:
                yield target
        elif output.endswith(".tar"):
            with _archive_file(Path(output)) as target:
                yield target
        else:
            with _directory(Path(output)) as target:
                yield target
    except BrokenPipeError as error:
        raise CommandError("the reader of the archive ended before all of it was written") from error
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror or error}") from error


@contextmanager
def _archive(file: BinaryIO) -> Iterator[LayoutTarget]:
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        yield _TarTarget(archive)
    file.flush()


@contextmanager
def _archive_file(path: Path) -> Iterator[LayoutTarget]:
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("xb") as file:
            with _archive(file) as target:
                yield target
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _directory(path: Path) -> Iterator[LayoutTarget]:
    is_new = not path.is_symlink() and not path.exists()
    if not is_new and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists: name a new directory, or a file that ends with .tar")
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    partial.mkdir(exist_ok=True)
    state = partial.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():  # links in it would be followed
        raise UsageError(f"{partial} is a link, or belongs to another user: remove it, or name another directory")
    yield _DirectoryTarget(partial)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()
    partial.rename(path)
