"""Starts worker processes, restarts one that ends, and stops them with the owner."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..oci.errors import ConfigError
from .epoch import Epoch
from .owner_server import OwnerResponder, OwnerServer
from .owner_watch import OWNER

logger = logging.getLogger("hubcache")

_START_SECONDS = 60.0
STOP_SECONDS = 5.0
"""How long a worker may take to end after its last download."""
_PAUSE_SECONDS = 1.0


class Supervisor:
    """The workers of one owner.

    Each runs `command` and inherits the `listening` sockets, which `environment` describes. `changed` is called with
    the number of connected workers when it changes.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        listening: Iterable[socket.socket],
        environment: Mapping[str, str],
        responder: OwnerResponder,
        changed: Callable[[int], None],
    ) -> None:
        self._command = command
        self._count = count
        self._listening = tuple(listening)
        self._environment = environment
        self._all_connected = asyncio.Event()
        self._changed = changed
        self._server = OwnerServer(responder, self._workers_changed)
        self._responder = responder
        self._epoch = Epoch.create()
        self._tasks: list[asyncio.Task[None]] = []
        self._processes: set[asyncio.subprocess.Process] = set()
        self._stop_within = 0.0
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Number of downloads that `close` waits for, and of those that were cut off when their worker ended."""
        return self._server.running

    @property
    def have_reported(self) -> bool:
        """Whether all workers have reported their running downloads."""
        return self._server.have_reported

    def _workers_changed(self, count: int) -> None:
        self._changed(count)
        if count == self._count:
            self._all_connected.set()

    async def start(self) -> None:
        """Start all workers and wait until they have connected; raises `ConfigError` when one does not in time."""
        self._responder.on_change(self._epoch.advance)
        self._tasks = [asyncio.create_task(self._keep_running(number)) for number in range(1, self._count + 1)]
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._all_connected.wait()
        except TimeoutError as error:
            raise ConfigError(f"hubcache_workers: {self._count} processes did not start") from error

    async def _keep_running(self, number: int) -> None:
        while True:
            try:
                process = await self._launch()
            except OSError as error:  # no memory or no descriptors: try again
                logger.warning("hubcache: worker %d cannot be started: %s", number, error)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self._processes.add(process)
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await _end(process, self._stop_within + STOP_SECONDS)
                raise
            finally:
                self._processes.discard(process)
            await asyncio.sleep(_PAUSE_SECONDS)
            logger.warning("hubcache: worker %d ended (%d) and is started again", number, code)

    async def _launch(self) -> asyncio.subprocess.Process:
        own_end, worker_end = socket.socketpair()
        with worker_end:
            connection = asyncio.create_task(self._server.serve(*await asyncio.open_connection(sock=own_end)))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)
            # In a session of its own, so that Ctrl-C reaches only the owner, which then stops its workers.
            return await asyncio.create_subprocess_exec(
                *self._command,
                env=os.environ | self._environment | {OWNER: f"{worker_end.fileno()},{self._epoch.fileno()}"},
                pass_fds=[worker_end.fileno(), self._epoch.fileno(), *(each.fileno() for each in self._listening)],
                start_new_session=True,
            )  # if this fails, the worker's end of the socket is closed, which ends the connection

    async def close(self, stop_within: float = 0.0) -> None:
        """Stop all workers, which have `stop_within` seconds for running downloads."""
        for each in self._listening:
            each.close()
        self._stop_within = stop_within
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._responder.on_change(lambda: None)
        self._epoch.close()

    def reload(self) -> None:
        """Have all workers read the config file again."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Kill the workers that are still running."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def _end(process: asyncio.subprocess.Process, patience: float) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(patience):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def inherited() -> tuple[socket.socket, Epoch] | None:
    """Return a worker's socket to its owner and their epoch; None in any other process."""
    descriptors = os.environ.get(OWNER)
    if descriptors is None:
        return None
    owner, epoch = map(int, descriptors.split(","))
    return socket.socket(fileno=owner), Epoch.attach(epoch)


def worker_command(script: Path) -> list[str]:
    """Return the command that starts `script` as a worker: with this program's arguments, and fewer log lines."""
    quiet = [] if any("termlog_verbosity" in argument for argument in sys.argv) else ["--set", "termlog_verbosity=warn"]
    return [sys.executable, str(script), *sys.argv[1:], *quiet]
