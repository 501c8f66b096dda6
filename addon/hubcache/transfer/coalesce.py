"""One piece of work for all who ask for the same thing at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any


class Coalescer[Key: Hashable, Value]:
    """Runs the work once per key; it goes on when those who wait leave."""

    def __init__(self) -> None:
        self._running: dict[Key, asyncio.Task[Value]] = {}

    async def run(self, key: Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """The result of the running work for `key`, or of this one."""
        return await asyncio.shield(self.start(key, work))

    def is_running(self, key: Key) -> bool:
        """Whether work for `key` is running."""
        return key in self._running

    def start(self, key: Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> asyncio.Task[Value]:
        """The running work for `key`, or this one, for somebody who does not wait for it."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._settle(key, done))
        return task

    def _settle(self, key: Key, task: asyncio.Task[Value]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # mark as retrieved: all who waited may have left
