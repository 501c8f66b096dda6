"""What the store holds, read from its rows when it is opened."""

import contextlib
import gc
from collections.abc import Container, Iterable, Iterator
from itertools import batched

from ..decide.records import ManifestRecord, decode_clock, decode_row
from ..decide.retention import Retention, Row
from ..oci.digest import Digest
from ..oci.errors import RegistryError
from ..oci.manifest import parse_manifest
from .disk import changed_at
from .facts import FACT_LIFETIME
from .index import BATCH, Index
from .usage import Usage, on_disk

CLOCK = "retention/clock"
"""Row of the policy's clock, beside those of what it knows."""

_SOON_SECONDS = 86400.0

_LAST_NANOSECONDS = 300 * 10**9
"""What may not have been on disk when the power failed: far more than a disk takes to write its cache."""


def children_of(record: ManifestRecord) -> tuple[Digest, ...]:
    """What a manifest refers to."""
    return tuple(descriptor.digest for descriptor in parse_manifest(record.body))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would walk a growing heap again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def stored_last(rows: Iterable[tuple[str, str]]) -> list[Digest]:
    """Blobs that were stored within a few minutes before the last one was, of (key, file name)."""
    stored = [(changed_at(name), key) for key, name in rows]
    newest = max((at for at, _ in stored), default=0)
    return [Digest(key.removeprefix("blob/")) for at, key in stored if at >= newest - _LAST_NANOSECONDS]


def renew_private(index: Index, held: Container[str]) -> None:
    """Let what is stored stay private, however long this program did not run, or never long enough for `Facts.renew`.
    Done before anything is served."""
    ending = (row for row in index.ending(_SOON_SECONDS) if row[0].startswith("private/"))
    rows = {key: value for key, value in ending if key.removeprefix("private/") in held}
    for some in batched(rows.items(), BATCH):
        index.set_many(dict(some), FACT_LIFETIME)


@_uncollected()
def take_inventory(index: Index, ledger: Usage, retention: Retention[Digest], now: float) -> None:
    """What is stored, from the content's rows; how often it is asked for, from the policy's. A row of the policy that
    is missing (a crash lost a few seconds of them, or the store is of an older program) is made anew, at `now`."""
    sizes: dict[Digest, int] = {}
    children: dict[Digest, tuple[Digest, ...]] = {}
    known: dict[Digest, Row] = {}
    clock, senseless = None, []
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
            senseless.append(key)  # not written by this program, or damaged: nothing is to be had from it
    for key in senseless:
        index.delete(key)
    ledger.restore(sizes, children)
    retention.restore(clock, known)
    for digest in retention.residents - sizes.keys():
        retention.removed(digest)
    for digest in sizes.keys() - retention.residents:
        retention.stored(digest, on_disk(sizes[digest]), now)
