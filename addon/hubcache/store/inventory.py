"""Reads the inventory of stored content from the rows of the index when the store is opened."""

import contextlib
import gc
from collections.abc import Iterable, Iterator

from ..decide.records import ManifestRecord
from ..decide.retention import Retention
from ..decide.retention_rows import Row, decode_clock, decode_row
from ..oci.digest import Digest
from ..oci.errors import RegistryError
from ..oci.manifest import parse_manifest
from .disk import changed_at
from .index import Index
from .popularity import CLOCK
from .usage import Usage, size_on_disk

_LAST_NANOSECONDS = 300 * 10**9
"""Nanoseconds before the last write: content stored in this time may not have reached the disk when the power failed. A
disk writes its cache in far less."""


def children_of(record: ManifestRecord) -> tuple[Digest, ...]:
    """Return the digests that a manifest refers to."""
    return tuple(descriptor.digest for descriptor in parse_manifest(record.body))


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Disable the garbage collector, which would traverse a growing heap again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def stored_last(rows: Iterable[tuple[str, str]]) -> list[Digest]:
    """Return the blobs that were stored in the minutes before the last one, from rows of (key, file name)."""
    stored = [(changed_at(name), key) for key, name in rows]
    newest = max((at for at, _ in stored), default=0)
    return [Digest(key.removeprefix("blob/")) for at, key in stored if at >= newest - _LAST_NANOSECONDS]


@without_gc()
def take_inventory(index: Index, usage: Usage, retention: Retention[Digest], now: float) -> None:
    """Read the stored content from its rows, and its request counts from the rows of the policy.

    A missing row of the policy (a crash lost those of a few seconds, or an older program wrote the store) is replaced
    by one that begins at `now`. Rows that cannot be read are deleted.
    """
    sizes: dict[Digest, int] = {}
    children: dict[Digest, tuple[Digest, ...]] = {}
    known: dict[Digest, Row] = {}
    clock, unreadable = None, []
    for key, value, size, filename in index.rows(""):
        kind, _, name = key.partition("/")
        try:
            if kind == "retention":
                if key == CLOCK:
                    clock = decode_clock(value)
                else:
                    known[Digest.parse(name)] = decode_row(value)
            elif kind == "blob" and filename is not None:
                sizes[Digest.parse(name)] = size
            elif kind == "manifest":
                record, digest = ManifestRecord.decode(value), Digest.parse(name)
                sizes[digest], children[digest] = len(record.body), children_of(record)
        except (RegistryError, ValueError, TypeError, AttributeError):
            unreadable.append(key)  # damaged, or not written by this program
    for key in unreadable:
        index.delete(key)
    usage.restore(sizes, children)
    retention.restore(clock, known)
    for digest in retention.stored - sizes.keys():
        retention.record_removed(digest)
    for digest in sizes.keys() - retention.stored:
        retention.record_stored(digest, size_on_disk(sizes[digest]), now)
