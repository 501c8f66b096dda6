"""Starts the workers, starts them again when one dies, and ends them with the owner."""

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
from ..serve.responder import CountingResponder
from .epoch import Epoch
from .owner_server import OwnerServer

logger = logging.getLogger("hubcache")

OWNER = "HUBCACHE_WORKER"
"""Environment variable of a worker: the inherited descriptors of its socket to the owner and of the epoch.

A socket with a name could be left behind by an owner that is killed, and others could try to connect to it."""

_START_SECONDS = 60.0
STOP_SECONDS = 5.0
"""What a worker may take to end after its last download."""
_PAUSE_SECONDS = 1.0


class Supervisor:
    """Workers of one owner; each runs `command` and inherits the `doors`, of which `environment` tells it."""

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        doors: Iterable[socket.socket],
        environment: Mapping[str, str],
        responder: CountingResponder,
        changed: Callable[[int], None],
    ) -> None:
        self._command = command
        self._count = count
        self._doors = tuple(doors)
        self._environment = environment
        self._alive = asyncio.Event()
        self._changed = changed
        self._owner = OwnerServer(responder, self._workers_changed)
        self._responder = responder
        self._epoch = Epoch.create()
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: set[asyncio.subprocess.Process] = set()
        self._stop_within = 0.0
        self._conversations: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """How many downloads go on in workers that `close` is waiting for, or were cut when they ended."""
        return self._owner.running

    @property
    def have_reported(self) -> bool:
        """Whether that is known of all workers."""
        return self._owner.have_reported

    def _workers_changed(self, count: int) -> None:
        self._changed(count)
        if count == self._count:
            self._alive.set()

    async def start(self) -> None:
        """Start all, and wait until they are at work; raises `ConfigError` when one does not come up."""
        self._responder.on_change(self._epoch.advance)
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(1, self._count + 1)]
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._alive.wait()
        except TimeoutError as error:
            raise ConfigError(f"hubcache_workers: {self._count} processes did not start") from error

    async def _keep(self, number: int) -> None:
        while True:
            try:
                process = await self._launch()
            except OSError as error:  # no memory, no descriptors: perhaps in a moment
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
        ours, theirs = socket.socketpair()
        with theirs:
            conversation = asyncio.create_task(self._owner.serve(*await asyncio.open_connection(sock=ours)))
            self._conversations.add(conversation)
            conversation.add_done_callback(self._conversations.discard)
            # A session of its own: Ctrl-C is for the owner, which ends its workers in order.
            return await asyncio.create_subprocess_exec(
                *self._command,
                env=os.environ | self._environment | {OWNER: f"{theirs.fileno()},{self._epoch.fileno()}"},
                pass_fds=[theirs.fileno(), self._epoch.fileno(), *(door.fileno() for door in self._doors)],
                start_new_session=True,
            )  # where there is no process, nobody has the other end, and the conversation ends

    async def close(self, stop_within: float = 0.0) -> None:
        """End all workers, which have so many seconds for downloads."""
        for door in self._doors:
            door.close()
        self._stop_within = stop_within
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*self._conversations, return_exceptions=True)
        self._responder.on_change(lambda: None)
        self._epoch.close()

    def kill(self) -> None:
        """Have those that are still running end at once."""
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
    """A worker's socket to its owner, and their epoch; None in any other process."""
    descriptors = os.environ.get(OWNER)
    if descriptors is None:
        return None
    owner, epoch = map(int, descriptors.split(","))
    return socket.socket(fileno=owner), Epoch.find(epoch)


def worker_command() -> list[str]:
    """How this very program is started as a worker: with the same arguments, and fewer words about its start."""
    script = Path(__file__).resolve().parents[2] / "worker.py"
    quiet = [] if any("termlog_verbosity" in argument for argument in sys.argv) else ["--set", "termlog_verbosity=warn"]
    return [sys.executable, str(script), *sys.argv[1:], *quiet]
