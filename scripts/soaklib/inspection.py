"""What must be true of a store directory that no process uses: each promise that does not hold is a line."""

import asyncio
import hashlib
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.store.store import Store
from hubcache.store.usage import BLOCK, on_disk


@dataclass
class Findings:
    """What was found wrong; all empty means that all is well."""

    wrong: list[str] = field(default_factory=list)
    """Content whose bytes do not have its digest."""
    lost: list[str] = field(default_factory=list)
    """Content that was committed, and is neither stored nor was removed."""
    orphans: list[str] = field(default_factory=list)
    """Files that no row names."""
    account: list[str] = field(default_factory=list)
    """Sizes that do not add up."""
    over_cap: list[str] = field(default_factory=list)
    """Bytes beyond the cap."""

    def add(self, other: "Findings") -> None:
        """Take over what another look found."""
        for name in self.__dataclass_fields__:
            getattr(self, name).extend(getattr(other, name))

    @property
    def lines(self) -> list[str]:
        """All of it, for people."""
        return [f"{name}: {text}" for name in self.__dataclass_fields__ for text in getattr(self, name)]


def inspect(
    directory: Path, capacity: int, expected: Set[str] = frozenset(), damaged: Set[str] = frozenset()
) -> tuple[Findings, set[str]]:
    """Open a store as the program does after a crash, and look at all of it; returns what is stored, too.

    `expected` are digests that must be there; `damaged` those of blobs in which a bit was flipped, perhaps: they are
    asked for, as clients do, and whatever is stored then must be right.
    """
    return asyncio.run(_inspect(directory, capacity, expected, damaged))


async def _inspect(directory: Path, capacity: int, expected: Set[str], damaged: Set[str]) -> tuple[Findings, set[str]]:
    found = Findings()
    store = Store(directory, capacity)
    store.rooms.min_free = 0
    store.open()
    try:
        for text in damaged:
            blob = await store.open_blob(Digest.parse(text))
            if blob is not None:
                blob.close()
        sizes = dict(store.ledger.sizes)
        named = _look_at_rows(store, found)
        files = {path for path in (directory / "store" / "blobs").rglob("*") if path.is_file()}
        found.orphans += [str(path) for path in sorted(files - named)]
        found.orphans += [str(path) for path in sorted((directory / "staging").iterdir())]
        ledger = store.ledger
        account = ledger.stored, ledger.quarantined, ledger.reserved, ledger.used
        stored, aside = sum(map(on_disk, sizes.values())), _bytes_aside(directory)
        if account != (stored, aside, 0, stored + aside):
            found.account.append(f"stored, quarantined, reserved, used: {account}; expected {stored}, {aside}, 0")
        found.lost += sorted(expected - {str(digest) for digest in sizes})
        used, count = disk_bytes(directory)
        over = used - capacity - BLOCK * count
        if over > 0:
            found.over_cap.append(f"{over} bytes beyond the cap")
        return found, {str(digest) for digest in sizes}
    finally:
        await store.close()


def _look_at_rows(store: Store, found: Findings) -> set[Path]:
    """Verify all content; returns the files that rows name."""
    named = set()
    index = store._index
    assert index is not None
    for key, value, size, filename in index.rows(""):
        kind, _, name = key.partition("/")
        if kind == "blob" and filename is not None:
            path = store.directory / "store" / filename
            named.add(path)
            _look_at_file(path, Digest.parse(name), size, found)
        elif kind == "manifest" and not Digest.parse(name).matches(ManifestRecord.decode(value).body):
            found.wrong.append(key)
    return named


def _bytes_aside(directory: Path) -> int:
    """What the quarantine takes."""
    return sum(on_disk(path.stat().st_size) for path in (directory / "quarantine").glob("*"))


def _look_at_file(path: Path, digest: Digest, size: int, found: Findings) -> None:
    if not path.exists():
        found.lost.append(f"{digest}: its row names {path}, which is not there")
        return
    if path.stat().st_size != size:
        found.account.append(f"{digest}: {path.stat().st_size} bytes, its row says {size}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, digest.algorithm).hexdigest() != digest.hex:
            found.wrong.append(str(digest))


def disk_bytes(directory: Path) -> tuple[int, int]:
    """Bytes on disk of all files of a store, and how many files; one with two names counts once."""
    sizes: dict[int, int] = {}
    for path in directory.rglob("*"):
        try:
            state = path.lstat()
        except FileNotFoundError:  # just removed by the program
            continue
        if path.is_file():
            sizes[state.st_ino] = state.st_blocks * 512
    return sum(sizes.values()), len(sizes)
