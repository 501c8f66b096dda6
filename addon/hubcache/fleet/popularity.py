"""Request counts of the fleet: each node writes those of its busiest content into the bucket, and a sweep adds them."""

import asyncio
import base64
import contextlib
import heapq
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import batched

from ..decide.bucket_plan import SummedCounts, short_digest
from ..decide.decaying_count import DecayingCount
from ..oci.digest import Digest
from . import keys
from .bucket import Bucket, BucketUnavailable, Entry
from .leases import Clock
from .tasks import end_task, start_task
from .values import decode_value, encode_value, text_field

POPULARITY_SECONDS = 60.0
"""Time between two writes of a node's counts, if they have changed."""

BUSIEST = 10_000
"""Digests whose counts a node writes; at most twice as many are counted."""

SILENT = 3600.0
"""Counts of a node that is not live and has not written for this number of seconds are merged with those of others."""

MOST_EARLIER = 40_000
"""Digests of which counts of nodes that have disappeared are kept."""

_EARLIER = f"{keys.POPULARITY}/_earlier"
"""Their object; no id of a node begins with `_`."""

_ROW = struct.Struct("<QfI")
"""Of each digest: its first 64 bits, the decayed count, and the second of the last request by the bucket's clock."""

_READS = 16
"""Objects of nodes that are read at the same time."""


class NodePopularity:
    """The counts of this node. `half_life` is in seconds and may be changed at any time.

    `is_shared` returns whether the bucket may contain a digest; those of private content are not written.
    """

    def __init__(
        self, bucket: Bucket, clock: Clock, node: str, half_life: float, is_shared: Callable[[Digest], bool]
    ) -> None:
        self.half_life = half_life
        self._bucket = bucket
        self._clock = clock
        self._key = keys.popularity(node)
        self._is_shared = is_shared
        self._counts: dict[int, DecayingCount] = {}
        self._has_changed = False
        self._task: asyncio.Task[None] | None = None

    def count_request(self, digest: Digest) -> None:
        """Count a request of a client for this content."""
        if not self._is_shared(digest):
            return
        self._has_changed = True
        now, key = self._clock.now(), short_digest(digest.hex)
        known = self._counts.get(key)
        self._counts[key] = DecayingCount(1.0, now) if known is None else known.plus(now, self.half_life)
        if len(self._counts) > 2 * BUSIEST:
            self._counts = dict(_busiest(self._counts.items(), now, self.half_life, BUSIEST))

    async def start(self) -> None:
        """Write the counts from now on."""
        self._task = start_task(self._write_repeatedly(), name="request counts of the fleet")

    async def close(self) -> None:
        """Write the counts for the last time."""
        if self._task is None:
            return
        await end_task(self._task)
        self._task = None
        with contextlib.suppress(BucketUnavailable):
            await self.write()

    async def write(self) -> None:
        """Write the counts if they have changed. Raises `BucketUnavailable`."""
        if not self._has_changed:
            return
        self._has_changed = False
        value = await asyncio.to_thread(
            _encode, tuple(self._counts.items()), self._clock.now(), self.half_life, BUSIEST
        )
        try:
            await self._bucket.put(self._key, value)
        except BucketUnavailable:
            self._has_changed = True
            raise

    async def _write_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(POPULARITY_SECONDS)
            with contextlib.suppress(BucketUnavailable):
                await self.write()


@dataclass(frozen=True, slots=True)
class FleetPopularity:
    """The sums of all nodes' counts, and those of nodes that have disappeared; all objects, and those of the latter."""

    sums: SummedCounts
    earlier: SummedCounts
    entries: tuple[Entry, ...]
    silent: tuple[Entry, ...]


async def read_popularity(
    bucket: Bucket, half_life: float, now: float, is_live: Callable[[str], bool]
) -> FleetPopularity:
    """Return the sums of what all nodes have counted. Raises `BucketUnavailable`.

    A node has a new id at each start, so objects of earlier ones remain: `merge_earlier` replaces them by a single one.
    """
    entries = [entry async for entry in bucket.list(keys.POPULARITY)]
    sums, earlier, silent = SummedCounts(half_life), SummedCounts(half_life), list[Entry]()
    for some in batched(entries, _READS):
        for entry, found in zip(some, await asyncio.gather(*(bucket.get(entry.key) for entry in some)), strict=True):
            targets = [sums]
            if entry.key == _EARLIER or not (is_live(entry.key.rpartition("/")[2]) or entry.modified > now - SILENT):
                targets.append(earlier)
                silent.append(entry)
            if found is not None:
                await asyncio.to_thread(_add, found.value, now, targets)  # takes some milliseconds for each node
    return FleetPopularity(sums, earlier, tuple(entries), tuple(silent))


async def merge_earlier(bucket: Bucket, popularity: FleetPopularity, now: float) -> None:
    """Replace the objects of nodes that have disappeared by one object. Raises `BucketUnavailable`."""
    others = [entry.key for entry in popularity.silent if entry.key != _EARLIER]
    if others:
        counts = popularity.earlier
        value = await asyncio.to_thread(_encode, counts.items(), now, counts.half_life, MOST_EARLIER)
        await bucket.put(_EARLIER, value)
        await bucket.delete(*others)


def _add(value: bytes, now: float, targets: list[SummedCounts]) -> None:
    for key, count, last in _decode(value):
        for target in targets:
            target.add(key, count, min(last, now))


type _Counts = Iterable[tuple[int, DecayingCount]]


def _busiest(counts: _Counts, now: float, half_life: float, most: int) -> _Counts:
    return heapq.nlargest(most, counts, key=lambda item: item[1].at(now, half_life))


def _encode(counts: _Counts, now: float, half_life: float, most: int) -> bytes:
    busiest = _busiest(counts, now, half_life, most)
    rows = b"".join(_ROW.pack(key, known.count, max(0, int(known.last))) for key, known in busiest)
    return encode_value({"rows": base64.b64encode(rows).decode()})


def _decode(value: bytes) -> Iterator[tuple[int, float, float]]:
    """Yield digest, count and last request of each row; nothing for an object that this version cannot read."""
    text = text_field(decode_value(value) or {}, "rows") or ""
    try:
        rows = base64.b64decode(text, validate=True)
    except ValueError:  # not base64, or not ASCII
        return
    for key, count, last in _ROW.iter_unpack(rows[: len(rows) // _ROW.size * _ROW.size]):
        if 0 <= count < 1e12:  # not for NaN
            yield key, count, float(last)
