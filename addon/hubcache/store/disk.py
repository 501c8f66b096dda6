"""The diskcache `Disk` of this store: files are linked into the directory, text and bytes are in the rows, no pickle.

diskcache's own `Disk` copies a file on the calling thread and unpickles what it finds in the directory
(CVE-2025-69872); this one accepts `str` keys and `str`, `bytes` or `StagedFile` values and refuses everything else.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_BINARY, MODE_RAW, UNKNOWN

from ..oci.digest import Digest
from ..oci.errors import StorageError

BLOBS = "blobs"
"""Folder of the files, in the directory of the index."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A complete, verified file on the same file system that is to be stored; `size` in bytes."""

    path: Path
    digest: Digest
    size: int


class FileDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Stores a `StagedFile` by a hard link; returns stored files as paths."""

    def put(self, key: Any) -> tuple[str, bool]:
        """Accept text keys only."""
        if type(key) is not str:
            raise TypeError(f"store keys are str, got {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        """Accept text keys only; a row with another kind of key was not written by this program."""
        if not raw or type(key) is not str:
            raise StorageError("the store has a row with a key that is not text")
        return key

    def store(self, value: Any, read: bool, key: Any = UNKNOWN) -> tuple[int, int, str | None, Any]:
        """Store text and bytes in the row, and a staged file under a name that is never used twice.

        The staged file keeps its old name until the fill has ended: another process opens it by that name while the row
        is not yet written.

        The random part is needed because diskcache removes a replaced row's file after the new row is written: two
        commits of one digest must not share a name. The name contains the file's time of change: see `is_unchanged`.
        """
        if isinstance(value, StagedFile):
            changed = value.path.stat().st_mtime_ns
            name = f"{BLOBS}/{value.digest.hex[:2]}/{value.digest.hex}.{changed:x}.{secrets.token_hex(4)}"
            target = Path(self._directory, name)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                target.hardlink_to(value.path)
            except OSError:  # no hard links (exFAT, SMB); until the row is written, requests for the blob go upstream
                value.path.replace(target)
            return value.size, MODE_BINARY, name, None
        if type(value) in (str, bytes):
            return 0, MODE_RAW, None, value
        raise TypeError(f"store values are str, bytes or StagedFile, got {type(value).__name__}")

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Return the text or bytes of a row, or the `Path` of its file."""
        if mode == MODE_RAW and type(value) in (str, bytes):
            return value
        if mode == MODE_BINARY and filename is not None:
            return Path(self._directory, filename)
        raise StorageError("the store has a row of a kind that this program never writes")


def is_unchanged(path: Path, changed: int) -> bool:
    """Whether a stored file's time of change (nanoseconds since the epoch) is the one that it was stored with.

    A file that was changed later may contain anything, and must be verified before it is served.
    """
    return changed_at(path.name) == changed


def changed_at(name: str) -> int:
    """Return a file's time of change when it was stored, from its name; -1 for a name that does not contain it."""
    try:
        return int(name.split(".")[1], 16)
    except (IndexError, ValueError):
        return -1
