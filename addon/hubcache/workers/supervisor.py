"""Starts the workers, starts them again when one dies, and ends them with the owner."""

import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from socket import socket

from ..oci.errors import ConfigError
from .epoch import Epoch
from .owner import Decider, Owner
from .remote import EPOCH

logger = logging.getLogger("hubcache")

ADDRESS = "HUBCACHE_WORKER"
"""Environment variable of a worker: the owner's Unix socket."""

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
_PAUSE_SECONDS = 1.0


class Supervisor:
    """Workers of one owner; each runs `command` and inherits the `doors`, of which `environment` tells it."""

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        doors: Iterable[socket],
        environment: Mapping[str, str],
        decider: Decider,
        changed: Callable[[int], None],
    ) -> None:
        self._command = command
        self._count = count
        self._doors = tuple(doors)
        self._environment = environment
        self._alive = asyncio.Event()
        self._changed = changed
        self._owner = Owner(decider, self._workers_changed)
        self._decider = decider
        self._folder = tempfile.TemporaryDirectory(prefix="hubcache-")
        self._server: asyncio.Server | None = None
        self._keepers: list[asyncio.Task[None]] = []

    def _workers_changed(self, count: int) -> None:
        self._changed(count)
        if count == self._count:
            self._alive.set()

    async def start(self) -> None:
        """Start all, and wait until they are at work; raises `ConfigError` when one does not come up."""
        address = str(Path(self._folder.name, "owner"))  # in a folder that is nobody else's: the frames carry tokens
        epoch = Epoch.create(Path(f"{address}{EPOCH}"))
        self._decider.watch(epoch.advance)
        self._server = await asyncio.start_unix_server(self._owner.serve, address)
        self._keepers = [asyncio.create_task(self._keep(number, address)) for number in range(1, self._count + 1)]
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._alive.wait()
        except TimeoutError as error:
            raise ConfigError(f"hubcache_workers: {self._count} processes did not start") from error

    async def _keep(self, number: int, address: str) -> None:
        while True:
            try:
                process = await self._launch(address)
            except OSError as error:  # no memory, no descriptors: perhaps in a moment
                logger.warning("hubcache: worker %d cannot be started: %s", number, error)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await _end(process)
                raise
            logger.warning("hubcache: worker %d ended (%d) and is started again", number, code)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _launch(self, address: str) -> asyncio.subprocess.Process:
        # A session of its own: Ctrl-C is for the owner, which ends its workers in order.
        return await asyncio.create_subprocess_exec(
            *self._command,
            env=os.environ | self._environment | {ADDRESS: address},
            pass_fds=[door.fileno() for door in self._doors],
            start_new_session=True,
        )

    async def close(self) -> None:
        """End all workers."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        await self._owner.left()
        for door in self._doors:
            door.close()
        self._folder.cleanup()


async def _end(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def worker_command() -> list[str]:
    """How this very program is started as a worker: with the same arguments, and fewer words about its start."""
    script = Path(__file__).resolve().parents[2] / "worker.py"
    quiet = [] if any("termlog_verbosity" in argument for argument in sys.argv) else ["--set", "termlog_verbosity=warn"]
    return [sys.executable, str(script), *sys.argv[1:], *quiet]
