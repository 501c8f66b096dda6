"""Runs the real program with workers, a small store and many clients, while its upstream fails and it is killed."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from support.program import Program
from support.standin import Hub, Image, random_bytes

from .disturbances import WORKERS, Disturbances
from .inspection import bytes_over_cap, inspect
from .outcome import WARM_UP_SECONDS, Outcome
from .process import sample
from .pulls import Clients

CAPACITY = 48 << 20
"""Bytes of the store, for some 180 MB of images: there is always something to evict."""

_IMAGES = 60
_CLIENTS = 12
_SAMPLE_SECONDS = 1.0
_CALM_SECONDS = 5.0
"""Time before each fault or kill."""

_LAST_CALM_SECONDS = 15.0
"""Time after the last fault or kill: its samples are the last third of a short run."""


class Endurance:
    """One run in `directory`."""

    def __init__(self, directory: Path, seed: int, most_requests: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._seed = seed
        self._random = random.Random(seed)
        self._most = most_requests
        self._say = say

    def run(self, seconds: float, troubles: int, kills: int) -> Outcome:
        """Pull for `seconds`, or until all faults and kills are done, whichever takes longer.

        With `seconds`, a warm-up comes first and calm comes last, so that growth can be judged.
        Raises `RuntimeError` when the clients reach their limit of requests before all faults and kills are done.
        """
        with ExitStack() as stack:
            hub = stack.enter_context(Hub())
            images = _publish(hub)
            options: dict[str, str | list[str]] = {
                "hubcache_size": str(CAPACITY),
                "hubcache_min_free": "0",
                "hubcache_tag_ttl": "5",
                "hubcache_workers": str(WORKERS),
            }
            program = Program(self._directory, hub, options)
            stack.callback(program.stop)
            program.start()
            outcome = asyncio.run(self._pull(program, hub, images, seconds, troubles, kills))
            program.stop()
            outcome.findings, _ = inspect(program.store, CAPACITY)
            for complaint in ("Traceback", "has crashed", "never retrieved", "ResourceWarning"):
                outcome.complaints += [line for line in program.log.splitlines() if complaint in line]
            outcome.complaints += hub.violations
        return outcome

    async def _pull(
        self, program: Program, hub: Hub, images: list[Image], seconds: float, troubles: int, kills: int
    ) -> Outcome:
        """A failure of the clients or of `watch` ends the run at once, and is raised."""
        clients = Clients(program, images, self._seed, self._most)
        outcome = Outcome(clients.results, warm_at=time.monotonic() + WARM_UP_SECONDS)
        async with asyncio.TaskGroup() as group:
            pulling = group.create_task(clients.run(_CLIENTS))
            watching = group.create_task(watch(program, outcome))
            if seconds:
                await asyncio.sleep(WARM_UP_SECONDS)
            await self._disturb(Disturbances(program, hub, self._random), pulling, outcome, seconds, troubles, kills)
            if seconds:
                await asyncio.sleep(_LAST_CALM_SECONDS)
            clients.stop()
            await pulling
            watching.cancel()
        return outcome

    async def _disturb(
        self,
        disturbances: Disturbances,
        pulling: "asyncio.Task[None]",
        outcome: Outcome,
        seconds: float,
        troubles: int,
        kills: int,
    ) -> None:
        begun = time.monotonic()
        plan = disturbances.plan(troubles, kills)
        while not pulling.done() and (plan or time.monotonic() - begun < seconds):
            await asyncio.sleep(_CALM_SECONDS)
            if plan:
                name, disturb = plan.pop()
                self._say(f"{time.monotonic() - begun:4.0f} s, {len(outcome.clients.pulls)} pulls: {name}")
                with outcome.during(name):
                    await disturb()
        if plan:
            raise RuntimeError(f"clients reached {self._most} requests with {len(plan)} faults and kills still to do")


async def watch(program: Program, outcome: Outcome) -> None:
    """Measure the program and its store again and again, until cancelled."""
    while True:
        await asyncio.sleep(_SAMPLE_SECONDS)
        over = await asyncio.to_thread(bytes_over_cap, program.store, CAPACITY)
        outcome.over_cap = over if outcome.over_cap is None else max(outcome.over_cap, over)
        found = await asyncio.to_thread(sample, program)
        if found is not None:
            outcome.samples.append(found)


def _publish(hub: Hub) -> list[Image]:
    """Publish images of three layers each; each first layer is shared by every fifth image."""
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
