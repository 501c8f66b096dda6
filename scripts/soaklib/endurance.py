"""The real program with workers, a small store and many clients, while its upstream fails and it is killed."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from hubcache.store.usage import BLOCK
from support.http_client import wait_until
from support.program import Program
from support.standin import Hub, Image, random_bytes

from .faults import TROUBLES, Trouble
from .inspection import Findings, disk_bytes, inspect
from .process import Sample, children, kill, sample
from .pulls import Clients, Pull, Results

CAPACITY = 48 << 20
"""Bytes of the store, for some 180 MB of images: there is always something to evict."""

_IMAGES = 60
_CLIENTS = 12
_WORKERS = 2
_SAMPLE_SECONDS = 1.0
_RECOVERY_SECONDS = 40.0
"""A circuit is probed at least every 30 seconds."""

_TROUBLE_SECONDS = 5.0
_CALM_SECONDS = 5.0
_AFTER_SECONDS = 1.0


@dataclass
class Interval:
    """The time of a fault or a kill, until all had recovered from it; pulls that fall into it may fail."""

    name: str
    begun: float
    ended: float = float("inf")

    def meets(self, pull: Pull) -> bool:
        """Whether any moment of a pull was in it."""
        return pull.begun < self.ended and pull.ended > self.begun


@dataclass
class Outcome:
    """What a run saw."""

    clients: Results
    troubles: list[Interval] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    over_cap: int = 0
    """Bytes by which the store was beyond its cap, at most."""
    findings: Findings = field(default_factory=Findings)
    complaints: list[str] = field(default_factory=list)
    """Lines of the program's log that may never be there."""

    @property
    def failed(self) -> list[Pull]:
        """Pulls that failed outside of any fault's own time."""
        failed = (pull for pull in self.clients.pulls if pull.error)
        return [pull for pull in failed if not any(trouble.meets(pull) for trouble in self.troubles)]

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """The time of a fault."""
        interval = Interval(name, time.monotonic())
        self.troubles.append(interval)
        try:
            yield
        finally:
            interval.ended = time.monotonic() + _AFTER_SECONDS

    def thirds(self, name: str) -> tuple[float, float]:
        """The medians of a number in the first and in the last third of the samples."""
        values = [getattr(each, name) for each in self.samples] or [0]
        third = max(1, len(values) // 3)
        return median(values[:third]), median(values[-third:])


class Endurance:
    """One run in `directory`."""

    def __init__(self, directory: Path, seed: int, most_requests: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._seed = seed
        self._random = random.Random(seed)
        self._most = most_requests
        self._say = say

    def run(self, seconds: float, troubles: int, kills: int) -> Outcome:
        """Pull for so many seconds, or until so many faults and kills are through, whichever takes longer."""
        with ExitStack() as stack:
            hub = stack.enter_context(Hub())
            images = _publish(hub)
            options: dict[str, str | list[str]] = {
                "hubcache_size": str(CAPACITY),
                "hubcache_min_free": "0",
                "hubcache_tag_ttl": "5",
                "hubcache_workers": str(_WORKERS),
            }
            program = Program(self._directory, hub, options)
            stack.callback(program.stop)
            program.start()
            outcome = asyncio.run(self._disturb(program, hub, images, seconds, troubles, kills))
            program.stop()
            outcome.findings, _ = inspect(program.store, CAPACITY)
            for complaint in ("Traceback", "has crashed", "never retrieved", "ResourceWarning"):
                outcome.complaints += [line for line in program.log.splitlines() if complaint in line]
            outcome.complaints += hub.violations
        return outcome

    async def _disturb(
        self, program: Program, hub: Hub, images: list[Image], seconds: float, troubles: int, kills: int
    ) -> Outcome:
        clients = Clients(program, images, self._seed, self._most)
        outcome = Outcome(clients.results)
        begun = time.monotonic()
        pulling = asyncio.create_task(clients.run(_CLIENTS))
        watching = asyncio.create_task(_watch(program, outcome))
        disturbances = Disturbances(program, hub, outcome, self._random)
        plan = disturbances.plan(troubles, kills)
        while not pulling.done() and (plan or time.monotonic() - begun < seconds):
            await asyncio.sleep(_CALM_SECONDS)
            if plan:
                name, disturb = plan.pop()
                self._say(f"{time.monotonic() - begun:4.0f} s, {len(clients.results.pulls)} pulls: {name}")
                with outcome.during(name):
                    await disturb()
        clients.stop()
        await pulling
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        return outcome


class Disturbances:
    """What is done to the program and its upstream."""

    def __init__(self, program: Program, hub: Hub, outcome: Outcome, chosen: random.Random) -> None:
        self._program = program
        self._hub = hub
        self._outcome = outcome
        self._random = chosen

    def plan(self, troubles: int, kills: int) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """So many of each, in random order."""
        chosen = [TROUBLES[number % len(TROUBLES)] for number in range(troubles)]
        plan: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            (trouble.name, partial(self._trouble, trouble)) for trouble in chosen
        ]
        plan += [("a worker is killed", self._kill_worker) for _ in range(kills // 2)]
        plan += [("all processes are killed", self._kill_all) for _ in range(kills - kills // 2)]
        self._random.shuffle(plan)
        return plan

    async def _trouble(self, trouble: Trouble) -> None:
        await asyncio.to_thread(trouble.begin, self._hub)
        await asyncio.sleep(_TROUBLE_SECONDS)
        await asyncio.to_thread(trouble.end, self._hub)
        await asyncio.to_thread(self._recovered)

    def _recovered(self) -> None:
        """Wait until the program asks its upstreams again."""
        wait_until(lambda: not self._program.health["upstreams_down"], _RECOVERY_SECONDS)

    async def _kill_worker(self) -> None:
        workers = children(self._program.pid)
        kill(self._random.choice(workers))
        await asyncio.to_thread(wait_until, lambda: self._program.metric("hubcache_workers") == _WORKERS)

    async def _kill_all(self) -> None:
        await asyncio.to_thread(self._program.stop, signal.SIGKILL)
        await asyncio.to_thread(self._program.start)


async def _watch(program: Program, outcome: Outcome) -> None:
    while True:
        await asyncio.sleep(_SAMPLE_SECONDS)
        used, files = await asyncio.to_thread(disk_bytes, program.store)
        outcome.over_cap = max(outcome.over_cap, used - CAPACITY - BLOCK * files)
        found = await asyncio.to_thread(sample, program)
        if found is not None:
            outcome.samples.append(found)


def _publish(hub: Hub) -> list[Image]:
    """Images of a few layers each, of which some share one."""
    chosen = random.Random(0)
    base = [random_bytes(1_500_000, f"base {number}") for number in range(5)]
    return [
        hub.image(
            f"library/app{number}",
            "1",
            [base[number % len(base)]]
            + [random_bytes(chosen.randrange(50_000, 3_000_000), f"{number}/{layer}") for layer in range(2)],
        )
        for number in range(_IMAGES)
    ]
