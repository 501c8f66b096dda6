"""The end of the program: how long it waits for running downloads, what it tells meanwhile, and what signals do."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterable

from .connection_hooks import ConnectionHooks
from .engine import Engine
from .workers.owner_client import OwnerClient
from .workers.supervisor import STOP_SECONDS, Supervisor

logger = logging.getLogger("hubcache")

_LOOK_SECONDS = 0.1
_TELL_SECONDS = 5.0
_WORKERS_TELL_SECONDS = 5.0


class Shutdown:
    """One stop."""

    def __init__(self) -> None:
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """Wait for nothing any more."""
        self._hurry.set()

    def hurry_at_signal(self) -> None:
        """Have the next SIGTERM or SIGINT end the wait: the one that began the stop was mitmproxy's to handle."""
        on_signals((signal.SIGTERM, signal.SIGINT), self.hurry)

    async def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until the condition holds, but not longer than so many seconds, and not in a hurry."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition() and not self._hurry.is_set() and loop.time() < end:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK_SECONDS, max(0.0, end - loop.time()))):
                    await self._hurry.wait()

    async def downloads_end(
        self, running: Callable[[], int], have_ended: Callable[[int], bool], promised: float, grace: float = 0.0
    ) -> None:
        """Wait until those that are `running`, of which that tells the number, `have_ended`: for the seconds that are
        promised to them, and `grace` for the end itself."""
        loop = asyncio.get_running_loop()
        logger.info("hubcache: stopping: %d downloads are running, for at most %g seconds", running(), promised)
        told_at = loop.time()

        def look() -> bool:
            nonlocal told_at
            count = running()
            ended = have_ended(count)
            if not ended and loop.time() - told_at >= _TELL_SECONDS:
                told_at = loop.time()
                logger.info("hubcache: stopping: %d downloads are running", count)
            return ended

        await self.until(look, promised + grace)
        logger.info("hubcache: stopping: %d downloads were cut", running())

    async def alone(self, connections: ConnectionHooks, engine: Engine, within: float) -> None:
        """Of a process that serves clients and owns the store."""
        await connections.close_doors()
        await engine.stop_background_work()

        def running() -> int:
            engine.cancel_unread()
            return connections.leave()

        await self.downloads_end(running, lambda count: not (count or connections.new), within)
        connections.cut()

    async def worker(self, connections: ConnectionHooks, remote: OwnerClient, within: float) -> None:
        """Of a worker: the owner is told how many downloads there are, for it tells all of them."""
        await connections.close_doors()

        def have_ended() -> bool:
            count = connections.leave()
            remote.report_running(count)
            return not (count or connections.new)

        await self.until(have_ended, within)
        connections.cut()

    async def owner(self, connections: ConnectionHooks, engine: Engine, workers: Supervisor, within: float) -> None:
        """Of the owner, which serves no clients itself: its workers end, each as above."""
        await connections.close_doors()
        closing = asyncio.create_task(workers.close(within))
        await engine.stop_background_work()
        await self.until(lambda: workers.have_reported, _WORKERS_TELL_SECONDS)

        def running() -> int:
            engine.cancel_unread()
            return workers.running

        await self.downloads_end(running, lambda _: closing.done(), within, STOP_SECONDS)
        workers.kill()
        await closing


def on_signals(signals: Iterable[signal.Signals], action: Callable[[], None]) -> None:
    """Have signals do this, in place of what they did; where the event loop hears of none all stays as it was."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows, or not in the main thread
        for each in signals:
            loop.add_signal_handler(each, action)


def ignore_hangup() -> None:
    """Have SIGHUP, which many programs take for "read your configuration again", not kill this one."""
    on_signals((signal.SIGHUP,), lambda: logger.info("hubcache: SIGHUP is ignored: options are read at start"))
