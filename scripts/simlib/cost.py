"""What the policy costs in CPU time with a long history and a full store, and how long such a store takes to open."""

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
    """A report; the numbers are of this machine, at this moment."""
    chance = random.Random(1)
    retention: Retention[int] = Retention(history=history)
    for key in range(history):
        retention.requested(key, _NOW)
    for key in range(residents):
        retention.stored(key, chance.randrange(1, 2 * SIZE), _NOW)
        retention.requested(key, _NOW)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, start: float) -> None:
        seconds.setdefault(name, []).append(process_time() - start)

    now = _NOW
    for _ in range(rounds):
        now += 1
        key = chance.randrange(residents)
        start = process_time()
        retention.requested(key, now)
        timed("request for a resident", start)
        key = chance.randrange(residents, history)
        start = process_time()
        retention.requested(key, now)
        timed("request for an absent one", start)
        start = process_time()
        room = retention.admit(key, SIZE, now, 0, _never)
        timed("decision with its eviction walk", start)
        if room.refusal is None:
            retention.stored(key, SIZE, now)
    for _ in range(5):
        start = process_time()
        retention.make_room(100 * SIZE, now, _never)
        timed("eviction walk of about 100 victims", start)
    start = process_time()
    retention.idle(now, _never)
    timed("search for idle residents", start)
    start = process_time()
    retention.forget(now)
    timed("cleaning the history", start)
    keys = sorted(retention.dirty())
    rows = {key: row for key in keys if (row := retention.row(key))}
    start = process_time()
    Retention[int]().restore(retention.clock(), rows)
    timed("restore", start)
    lines = [f"CPU time with {residents:,} residents and {history:,} rows of history, mean and worst of n:"]
    for name, values in seconds.items():
        mean, worst = 1e6 * sum(values) / len(values), 1e6 * max(values)
        lines.append(f"  {name:36}{mean:12,.1f} us {worst:12,.1f} us   n = {len(values):,}")
    lines.append(f"A store with this history opens in {asyncio.run(_opening(history)):.2f} s.")
    return "\n".join(lines)


async def _opening(history: int) -> float:
    """Seconds that it takes to open a store with so many digests of history."""
    with TemporaryDirectory(prefix="hubcache-cost-") as folder:
        store = Store(Path(folder), 1 << 30)
        store.open()
        for number in range(history):
            store.count_request(Digest.of(b"%d" % number))
        await store.close()
        store = Store(Path(folder), 1 << 30)
        start = perf_counter()
        store.open()
        seconds = perf_counter() - start
        assert store.rooms.retention.rows == history
        await store.close()
        return seconds
