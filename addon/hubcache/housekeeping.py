"""Runs the periodic work of the engine: tag refresh, delayed writes, expiry, and reopening of a store that failed."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from .oci.errors import StorageError, StoreTooNew
from .operate.history import History
from .serve.tag_refresh import TICK_SECONDS, TagRefresh
from .store.store import Store

logger = logging.getLogger("hubcache")

_REOPEN_SECONDS = 30.0
"""Seconds between two attempts to open a store that could not be opened."""

_EXPIRE_SECONDS = 3600.0
"""Seconds between two removals of expired content."""

_SAVE_SECONDS = 60.0
"""Seconds between two writes of the history of the traffic; a crash loses only this part of it."""


def open_store(directory: Path, max_bytes: int, report: Callable[[StorageError], None]) -> Store:
    """Return the store in a directory, with a capacity of `max_bytes`; raises `StoreTooNew`.

    If it cannot be opened, nothing is stored until `Housekeeping` opens it, and pulls continue.
    """
    store = Store(directory, max_bytes)
    try:
        store.open()
    except StorageError as error:
        report(error)
    return store


class Housekeeping:
    """A task that runs every `TICK_SECONDS`, from `start` to `close`.

    It starts tag validations that are due, calls `keep_control_open` and `flush_access_log`, writes what the store has
    in memory only and the history of the traffic, shrinks the store to a lowered capacity and removes expired content.
    A `StorageError` is passed to `report`.
    """

    def __init__(
        self,
        store: Store,
        tag_refresh: TagRefresh,
        history: History,
        keep_control_open: Callable[[], Awaitable[None]],
        flush_access_log: Callable[[], None],
        report: Callable[[StorageError], None],
    ) -> None:
        self._store = store
        self._tag_refresh = tag_refresh
        self._history = history
        self._keep_control_open = keep_control_open
        self._flush_access_log = flush_access_log
        self._report = report
        self._opened_at = self._expired_at = time.monotonic()
        self._saved_at = -math.inf
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the periodic work."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop, wait until the work in progress has ended, and write the history."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self._history.record(time.time())
        await self._save_history()

    async def _save_history(self) -> None:
        if self._store.is_open:
            try:
                await self._history.save(self._store.index)
            except StorageError as error:
                self._report(error)

    async def _run(self) -> None:
        await self._save_history()  # at once, because this also reads what an earlier run wrote
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._tag_refresh.tick()
            self._flush_access_log()
            self._history.record(time.time())
            try:
                await self._maintain_store(time.monotonic())
            except StorageError as error:
                self._report(error)
            except StoreTooNew as error:
                logger.warning("hubcache: %s", error)
            await self._keep_control_open()

    async def _maintain_store(self, now: float) -> None:
        if not self._store.is_open and now - self._opened_at >= _REOPEN_SECONDS:
            self._opened_at = now
            self._store.open()
            logger.info("hubcache: the store can be used again")
        if self._store.is_open:
            await self._store.maintain()
            if now - self._saved_at >= _SAVE_SECONDS:
                self._saved_at = now
                await self._history.save(self._store.index)
            if now - self._expired_at >= _EXPIRE_SECONDS:
                self._expired_at = now
                await self._store.expire()
