"""Faults of the upstream, and kills of the program: planned in random order, and done one after the other."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from functools import partial

from support.http_client import wait_until
from support.program import Program
from support.standin import Hub

from .faults import TROUBLES, Trouble
from .process import children, kill

WORKERS = 2
"""Worker processes of the program under test."""

_RECOVERY_SECONDS = 40.0
"""A circuit is probed at least every 30 seconds."""

_TROUBLE_SECONDS = 5.0


class Disturbances:
    """Disturbs a running program and its upstream."""

    def __init__(self, program: Program, hub: Hub, chosen: random.Random) -> None:
        self._program = program
        self._hub = hub
        self._random = chosen

    def plan(self, troubles: int, kills: int) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """As many faults and kills as asked for, in random order: names, and functions that return after recovery."""
        chosen = [TROUBLES[number % len(TROUBLES)] for number in range(troubles)]
        plan: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            (trouble.name, partial(self._trouble, trouble)) for trouble in chosen
        ]
        plan += [("a worker is killed", self._kill_worker) for _ in range(kills // 2)]
        plan += [("the program is killed", self._kill_program) for _ in range(kills - kills // 2)]
        self._random.shuffle(plan)
        return plan

    async def _trouble(self, trouble: Trouble) -> None:
        await asyncio.to_thread(trouble.begin, self._hub)
        await asyncio.sleep(_TROUBLE_SECONDS)
        await asyncio.to_thread(trouble.end, self._hub)
        await asyncio.to_thread(self._wait_for_upstreams)

    def _wait_for_upstreams(self) -> None:
        """Wait until the program sends requests to all its upstreams again."""
        wait_until(lambda: not self._program.health["upstreams_down"], _RECOVERY_SECONDS)

    async def _kill_worker(self) -> None:
        killed = self._random.choice(children(self._program.pid))
        kill(killed)
        await asyncio.to_thread(wait_for_successor, self._program, killed)

    async def _kill_program(self) -> None:
        """Kill the process that owns the store; its workers end with it."""
        await asyncio.to_thread(self._program.stop, signal.SIGKILL)
        await asyncio.to_thread(self._program.start)


def wait_for_successor(program: Program, killed: int) -> None:
    """Wait until a new process has replaced a killed worker and serves clients.

    The metric alone does not tell: it counts the killed worker until the program has noticed its end.
    """
    wait_until(lambda: killed not in (pids := children(program.pid)) and len(pids) >= WORKERS)
    wait_until(lambda: program.metric("hubcache_workers") == WORKERS)
