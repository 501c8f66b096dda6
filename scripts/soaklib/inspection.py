"""Inspects a store directory that no process uses: each violated invariant is one line."""

import asyncio
import hashlib
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.store.store import Store
from hubcache.store.usage import BLOCK, size_on_disk


@dataclass
class Findings:
    """What is wrong with a store; all lists are empty when nothing is."""

    wrong: list[str] = field(default_factory=list)
    """Content whose bytes do not match its digest."""
    lost: list[str] = field(default_factory=list)
    """Content that was committed and never removed, and is not stored."""
    orphans: list[str] = field(default_factory=list)
    """Files that no row of the index names."""
    account: list[str] = field(default_factory=list)
    """Sizes that do not add up."""
    over_cap: list[str] = field(default_factory=list)
    """By how many bytes the store exceeds its cap."""

    def add(self, other: "Findings") -> None:
        """Add what another inspection found."""
        for name in self.__dataclass_fields__:
            getattr(self, name).extend(getattr(other, name))

    @property
    def lines(self) -> list[str]:
        """All findings as text."""
        return [f"{name}: {text}" for name in self.__dataclass_fields__ for text in getattr(self, name)]


_WALKS = 4
"""How often the files are summed up before an excess is believed."""


def inspect(
    directory: Path, capacity: int, expected: Set[str] = frozenset(), damaged: Set[str] = frozenset()
) -> tuple[Findings, set[str]]:
    """Open a store as the program does after a crash and verify all of it; returns the stored digests, too.

    `expected` are digests that must be stored. `damaged` are digests of blobs in which a bit may be flipped: each is
    opened first, as for a client, so that the store can find the damage; what is stored after that must be intact.
    """
    return asyncio.run(_inspect(directory, capacity, expected, damaged))


async def _inspect(directory: Path, capacity: int, expected: Set[str], damaged: Set[str]) -> tuple[Findings, set[str]]:
    found = Findings()
    store = Store(directory, capacity)
    store.capacity.min_free = 0
    store.open()
    try:
        for text in damaged:
            blob = await store.open_blob(Digest.parse(text))
            if blob is not None:
                blob.close()
        sizes = dict(store.usage.sizes)
        named = _verify_rows(store, found)
        files = {path for path in (directory / "store" / "blobs").rglob("*") if path.is_file()}
        found.orphans += [str(path) for path in sorted(files - named)]
        found.orphans += [str(path) for path in sorted((directory / "staging").iterdir())]
        usage = store.usage
        account = usage.stored, usage.quarantined, usage.reserved, usage.used
        stored, quarantined = sum(map(size_on_disk, sizes.values())), _quarantined_bytes(directory)
        expected_account = stored, quarantined, 0, stored + quarantined
        if account != expected_account:
            found.account.append(f"stored, quarantined, reserved, used: {account}; expected {expected_account}")
        found.lost += sorted(expected - {str(digest) for digest in sizes})
        over = bytes_over_cap(directory, capacity)
        if over > 0:
            found.over_cap.append(f"{over} bytes over the cap")
        return found, {str(digest) for digest in sizes}
    finally:
        await store.close()


def _verify_rows(store: Store, found: Findings) -> set[Path]:
    """Verify the content of all rows; returns the files that they name."""
    named = set()
    index = store.index.current
    assert index is not None
    for key, value, size, filename in index.rows(""):
        kind, _, name = key.partition("/")
        if kind == "blob" and filename is not None:
            path = store.directory / "store" / filename
            named.add(path)
            _verify_file(path, Digest.parse(name), size, found)
        elif kind == "manifest" and not Digest.parse(name).matches(ManifestRecord.decode(value).body):
            found.wrong.append(key)
    return named


def _quarantined_bytes(directory: Path) -> int:
    """Bytes on disk of the quarantine."""
    return sum(size_on_disk(path.stat().st_size) for path in (directory / "quarantine").glob("*"))


def _verify_file(path: Path, digest: Digest, size: int, found: Findings) -> None:
    if not path.exists():
        found.lost.append(f"{digest}: its row names {path}, which does not exist")
        return
    if path.stat().st_size != size:
        found.account.append(f"{digest}: {path.stat().st_size} bytes, its row says {size}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, digest.algorithm).hexdigest() != digest.hex:
            found.wrong.append(str(digest))


def disk_bytes(directory: Path) -> tuple[int, int]:
    """Bytes on disk of all files of a store, and the number of files; a file with two names counts once."""
    sizes: dict[int, int] = {}
    for path in directory.rglob("*"):
        try:
            state = path.lstat()
        except FileNotFoundError:  # removed by the program since it was listed
            continue
        if path.is_file():
            sizes[state.st_ino] = state.st_blocks * 512
    return sum(sizes.values()), len(sizes)


def bytes_over_cap(directory: Path, capacity: int) -> int:
    """By how many bytes the files of a store exceed its capacity, with one block allowed for each file; negative when
    they do not.

    A walk through the files of a running program is no snapshot: it may count a file, and later another one that took
    the place of the first. So it is repeated when it finds an excess, and the smallest result counts.
    """
    least = _one_walk_over_cap(directory, capacity)
    for _ in range(_WALKS - 1):
        if least <= 0:
            break
        least = min(least, _one_walk_over_cap(directory, capacity))
    return least


def _one_walk_over_cap(directory: Path, capacity: int) -> int:
    used, files = disk_bytes(directory)
    return used - capacity - BLOCK * files
