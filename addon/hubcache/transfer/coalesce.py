"""Shares one run of a piece of work among concurrent requests for the same key."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any


class Coalescer[Key: Hashable, Value]:
    """Runs the work once per key. The work continues when the tasks that wait for it are cancelled."""

    def __init__(self) -> None:
        self._running: dict[Key, asyncio.Task[Value]] = {}

    async def run(self, key: Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Return the result of the work that runs for `key`, or start this work and return its result."""
        return await asyncio.shield(self.start(key, work))

    def is_running(self, key: Key) -> bool:
        """Whether work for `key` is running."""
        return key in self._running

    def start(self, key: Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> asyncio.Task[Value]:
        """Return the work that runs for `key`, or start this work, without waiting for it."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._end(key, done))
        return task

    def _end(self, key: Key, task: asyncio.Task[Value]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all waiting tasks may have been cancelled
