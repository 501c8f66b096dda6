"""Measures the CPU time of the retention policy with a long history, and the time to open a store that has one."""

import asyncio
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from hubcache.decide.retention import Retention
from hubcache.oci.digest import Digest
from hubcache.store.store import Store

HISTORY = 200_000
RESIDENTS = 20_000
ROUNDS = 20_000
SIZE = 1_000_000
_NOW = 1_700_000_000.0


def _never(_: int) -> bool:
    return False


def cost(history: int = HISTORY, residents: int = RESIDENTS, rounds: int = ROUNDS) -> str:
    """Measure and return a report."""
    chance = random.Random(1)
    retention: Retention[int] = Retention(max_absent=history)
    for key in range(history):
        retention.record_request(key, _NOW)
    for key in range(residents):
        retention.record_stored(key, chance.randrange(1, 2 * SIZE), _NOW)
        retention.record_request(key, _NOW)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, start: float) -> None:
        seconds.setdefault(name, []).append(process_time() - start)

    now = _NOW
    for _ in range(rounds):
        now += 1
        key = chance.randrange(residents)
        start = process_time()
        retention.record_request(key, now)
        timed("request for stored content", start)
        key = chance.randrange(residents, history)
        start = process_time()
        retention.record_request(key, now)
        timed("request for other content", start)
        start = process_time()
        decision = retention.admit(key, SIZE, now, 0, _never)
        timed("admission with eviction", start)
        if decision.refusal is None:
            retention.record_stored(key, SIZE, now)
    for _ in range(5):
        start = process_time()
        retention.evict(100 * SIZE, now, _never)
        timed("eviction of about 100 blobs", start)
    start = process_time()
    retention.evict_idle(now, _never)
    timed("search for idle content", start)
    start = process_time()
    retention.forget_absent(now)
    timed("pruning the history", start)
    keys = sorted(retention.take_changed())
    rows = {key: row for key in keys if (row := retention.row(key))}
    start = process_time()
    Retention[int]().restore(retention.clock(), rows)
    timed("restoring the rows", start)
    lines = [f"CPU time with {residents:,} stored blobs and {history:,} rows of history, mean and maximum of n:"]
    for name, values in seconds.items():
        mean, maximum = 1e6 * sum(values) / len(values), 1e6 * max(values)
        lines.append(f"  {name:36}{mean:12,.1f} us {maximum:12,.1f} us   n = {len(values):,}")
    lines.append(f"A store with this history opens in {asyncio.run(_opening(history)):.2f} s.")
    return "\n".join(lines)


async def _opening(history: int) -> float:
    """Seconds to open a store whose history has this number of digests."""
    with TemporaryDirectory(prefix="hubcache-cost-") as folder:
        store = Store(Path(folder), 1 << 30)
        store.open()
        for number in range(history):
            store.popularity.count_request(Digest.of(b"%d" % number))
        await store.close()
        store = Store(Path(folder), 1 << 30)
        start = perf_counter()
        store.open()
        seconds = perf_counter() - start
        assert store.capacity.retention.absent == history
        await store.close()
        return seconds
