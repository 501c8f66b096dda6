"""The diskcache `Disk` of this store: content-addressed files that are linked in, small values inline, no pickle.

diskcache's own `Disk` copies a file on the calling thread and unpickles whatever the directory holds
(CVE-2025-69872); this one accepts `str` keys and `str`, `bytes` or `StagedFile` values and refuses the rest.
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
"""Folder of the files, inside the cache directory."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A complete, verified file on the same file system, to be taken into the store; `size` in bytes."""

    path: Path
    digest: Digest
    size: int


class FileDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Stores a `StagedFile` by giving it a second name; hands files out as paths."""

    def put(self, key: Any) -> tuple[str, bool]:
        """Keys are text."""
        if type(key) is not str:
            raise TypeError(f"store keys are str, got {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        """Keys are text; a row with another kind of key was not written by this program."""
        if not raw or type(key) is not str:
            raise StorageError("the store has a row with a key that is not text")
        return key

    def store(self, value: Any, read: bool, key: Any = UNKNOWN) -> tuple[int, int, str | None, Any]:
        """Text and bytes go inline; a staged file gets a name that is never used twice.

        It keeps its old one, by which another process opens it, until the fill has ended: the row is not yet written.

        The random part matters: diskcache removes a replaced row's file after the new row is written, so two commits
        of one digest must not share a name. The file's time of change is in the name, too: see `is_untouched`.
        """
        if isinstance(value, StagedFile):
            changed = value.path.stat().st_mtime_ns
            name = f"{BLOBS}/{value.digest.hex[:2]}/{value.digest.hex}.{changed:x}.{secrets.token_hex(4)}"
            target = Path(self._directory, name)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                target.hardlink_to(value.path)
            except OSError:  # a file system without links (exFAT, SMB): who comes in between asks upstream
                value.path.replace(target)
            return value.size, MODE_BINARY, name, None
        if type(value) in (str, bytes):
            return 0, MODE_RAW, None, value
        raise TypeError(f"store values are str, bytes or StagedFile, got {type(value).__name__}")

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Text or bytes as stored, or the `Path` of a file."""
        if mode == MODE_RAW and type(value) in (str, bytes):
            return value
        if mode == MODE_BINARY and filename is not None:
            return Path(self._directory, filename)
        raise StorageError("the store has a row of a kind that this program never writes")


def is_untouched(path: Path, changed: int) -> bool:
    """Whether a stored file was last changed (nanoseconds since the epoch) when it was stored.

    One that was touched since may hold anything, and is to be verified before it is served.
    """
    return changed_at(path.name) == changed


def changed_at(name: str) -> int:
    """When a file was changed last before it was stored, by its name; -1 for a name that does not tell."""
    try:
        return int(name.split(".")[1], 16)
    except (IndexError, ValueError):
        return -1
