"""The bucket's size is a hard limit, whatever nodes and sweepers do at the same time and whatever fails."""

import asyncio
import random
from dataclasses import dataclass
from itertools import count

from hubcache.fleet.bucket import BucketUnavailable
from hubcache.fleet.keys import blob
from hubcache.fleet.leases import Leases
from hubcache.fleet.room import UPLOAD_SECONDS, Room
from hubcache.fleet.sweeper import Sweeper
from hubcache.oci.digest import Digest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet import TestNode
from support.sweeps import CAP, DAY, Members
from support.virtual_bucket import Objects, VirtualBucket
from support.virtual_time import VirtualClock, run


@dataclass(frozen=True)
class Conditions:
    """What a fleet has to cope with; times in seconds."""

    nodes: int
    pace: float
    """Mean time between two uploads of one of a node's two tasks."""
    seconds: float
    lossy: float = 0.0
    """Share of the requests that fail."""
    latency: float = 0.02
    kills: int = 0
    """Number of nodes that are killed and replaced by others."""
    sweepers: int = 0
    """Number of times that two nodes sweep without a lease after each of these."""
    slow: float = 0.0
    """Share of the uploads that take up to the longest time, or more."""


class SimulatedNode:
    """A node that uploads blobs all the time."""

    def __init__(self, objects: Objects, number: int, alive: list[TestNode], conditions: Conditions) -> None:
        self.me = TestNode(f"node-{number}")
        alive.append(self.me)
        self._alive = alive
        clock = VirtualClock(random.uniform(-1.0, 1.0))
        self.bucket = VirtualBucket(objects, conditions.lossy, conditions.latency)
        members = Members(self.me, alive)
        self.leases = Leases(self.bucket, clock, self.me)
        self.sweeper = Sweeper(self.bucket, clock, members, self.leases, CAP, 7 * DAY, 30 * DAY)
        self.room = Room(self.bucket, clock, members, CAP, self.sweeper.make_room)
        self._conditions = conditions
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.room.start()
        await self.sweeper.start()
        self._tasks = [asyncio.create_task(self._upload_repeatedly()) for _ in range(2)]

    async def kill(self) -> None:
        """Stop without any clean-up; requests that are under way may still be applied."""
        self.bucket.is_cut_off = True
        self._alive.remove(self.me)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.room.close()
        await self.sweeper.close()
        await self.leases.close()

    async def _upload_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(random.expovariate(1 / self._conditions.pace))
            size = int(min(CAP / 4, random.paretovariate(1.0) * 2000))
            try:
                if not await self.room.take(size):
                    continue
            except BucketUnavailable:
                continue
            await self._upload(size)

    async def _upload(self, size: int) -> None:
        key = blob(Digest.of(random.randbytes(8)))
        seconds = random.choice([1.0, 5.0, 60.0, UPLOAD_SECONDS, UPLOAD_SECONDS + 200])
        is_stored = False
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                await self.bucket.upload_bytes(key, size, seconds if random.random() < self._conditions.slow else 1.0)
            is_stored = True
        except (BucketUnavailable, TimeoutError):
            pass
        finally:
            self.room.ended(size, is_stored=is_stored)


async def fleet(conditions: Conditions) -> Objects:
    """Let a fleet upload; return its bucket."""
    objects, alive, numbers = Objects(), list[TestNode](), count()
    running = list[SimulatedNode]()

    async def add_node() -> None:
        running.append(SimulatedNode(objects, next(numbers), alive, conditions))
        await running[-1].start()

    for _ in range(conditions.nodes):
        await add_node()
    for _ in range(conditions.kills):
        await asyncio.sleep(random.expovariate((conditions.kills + 1) / conditions.seconds))
        await running.pop(random.randrange(len(running))).kill()
        await add_node()
        for _ in range(conditions.sweepers):
            await asyncio.gather(*(sweep_without_a_lease(node) for node in running[:2]))
    await asyncio.sleep(conditions.seconds / (conditions.kills + 1))
    for node in running:
        await node.kill()
    await asyncio.sleep(2 * UPLOAD_SECONDS)
    return objects


async def sweep_without_a_lease(node: SimulatedNode) -> None:
    """Sweep as a node does that believes to hold the lease."""
    lease = NeverLost()
    sweeping = asyncio.create_task(node.sweeper._sweep(random.choice([0, CAP // 5]), lease))  # type: ignore[arg-type]
    if random.random() < 0.5:
        await asyncio.sleep(random.uniform(0, 0.5))
        sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


class NeverLost:
    is_lost = False


CONDITIONS = st.builds(
    lambda pace, **others: Conditions(pace=pace, seconds=100 * pace, slow=0.05, **others),
    pace=st.sampled_from([0.5, 2.0, 30.0]),
    nodes=st.integers(1, 5),
    lossy=st.sampled_from([0.0, 0.02, 0.2]),
    latency=st.sampled_from([0.02, 2.0]),
    kills=st.integers(0, 4),
    sweepers=st.integers(0, 2),
)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), conditions=CONDITIONS)
def test_the_bucket_never_has_more_bytes_than_its_size(seed: int, conditions: Conditions) -> None:
    random.seed(seed)
    assert run(fleet(conditions)).most <= CAP


def test_uploads_continue_when_the_bucket_is_full() -> None:
    random.seed(1)
    objects = run(fleet(Conditions(nodes=3, pace=8.0, seconds=2000.0)))
    assert objects.written > 3 * CAP
    assert 0.8 * CAP < objects.sizes("blob") <= objects.most <= CAP
