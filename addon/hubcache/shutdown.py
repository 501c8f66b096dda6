"""Stops a process in order: waits for running downloads, logs their number meanwhile, and handles signals."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterable

from .clients.draining import Draining
from .engine import Engine
from .mitm import proxyserver
from .workers.owner_client import OwnerClient
from .workers.supervisor import STOP_SECONDS, Supervisor

logger = logging.getLogger("hubcache")

_POLL_SECONDS = 0.1
_LOG_SECONDS = 5.0
_WORKERS_REPORT_SECONDS = 5.0


class Shutdown:
    """The orderly stop of one process."""

    def __init__(self) -> None:
        self._no_wait = asyncio.Event()

    def end_wait(self) -> None:
        """End the current wait and all later ones."""
        self._no_wait.set()

    def end_wait_at_signal(self) -> None:
        """End the wait at the next SIGTERM or SIGINT; mitmproxy handled the one that began the stop."""
        on_signals((signal.SIGTERM, signal.SIGINT), self.end_wait)

    async def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until the condition holds, `seconds` are over, or the wait is ended."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition() and not self._no_wait.is_set() and loop.time() < end:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_POLL_SECONDS, max(0.0, end - loop.time()))):
                    await self._no_wait.wait()

    async def wait_for_downloads(
        self, running: Callable[[], int], have_ended: Callable[[int], bool], seconds: float, grace: float = 0.0
    ) -> None:
        """Wait for running downloads, for at most `seconds`, and `grace` more seconds for reports of their end.

        `running` returns their number. `have_ended` receives that number, and returns whether the wait is over.
        """
        loop = asyncio.get_running_loop()
        logger.info("hubcache: stopping: %d downloads are running, for at most %g seconds", running(), seconds)
        logged_at = loop.time()

        def check() -> bool:
            nonlocal logged_at
            count = running()
            ended = have_ended(count)
            if not ended and loop.time() - logged_at >= _LOG_SECONDS:
                logged_at = loop.time()
                logger.info("hubcache: stopping: %d downloads are running", count)
            return ended

        await self.wait_until(check, seconds + grace)
        logger.info("hubcache: stopping: %d downloads were cut off", running())

    async def stop_single(self, clients: Draining, engine: Engine, within: float) -> None:
        """Stop a process that serves clients and owns the store."""
        await proxyserver.close_listeners()
        await engine.stop_background_work()

        def running() -> int:
            engine.cancel_unread()
            return clients.close_idle()

        await self.wait_for_downloads(
            running, lambda count: not (count or clients.has_new or engine.is_uploading), within
        )
        clients.abort()

    async def stop_worker(self, clients: Draining, owner: OwnerClient, within: float) -> None:
        """Stop a worker, which reports the number of its downloads to the owner; the owner logs that of all workers."""
        await proxyserver.close_listeners()

        def have_ended() -> bool:
            count = clients.close_idle()
            owner.report_running(count)
            return not (count or clients.has_new)

        await self.wait_until(have_ended, within)
        clients.abort()

    async def stop_owner(self, engine: Engine, workers: Supervisor, within: float) -> None:
        """Stop the owner, which serves no clients itself; each worker stops as above."""
        await proxyserver.close_listeners()
        closing = asyncio.create_task(workers.close(within))
        await engine.stop_background_work()
        await self.wait_until(lambda: workers.have_reported, _WORKERS_REPORT_SECONDS)

        def running() -> int:
            engine.cancel_unread()
            return workers.running

        await self.wait_for_downloads(
            running, lambda _: closing.done() and not engine.is_uploading, within, STOP_SECONDS
        )
        workers.kill()
        await closing


def on_signals(signals: Iterable[signal.Signals], action: Callable[[], None]) -> None:
    """Have signals call `action` instead of their handlers; does nothing if the event loop does not support signals."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows, or not in the main thread
        for each in signals:
            loop.add_signal_handler(each, action)
