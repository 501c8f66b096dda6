"""Sends snapshots of the status as server-sent events (HTML living standard, section 9.2)."""

import asyncio
from collections.abc import Callable

from aiohttp import web

SECONDS = 2.0
"""Time between two snapshots."""

WRITE_SECONDS = 30.0
"""Longest time that a listener may take to receive one event."""

MAX_LISTENERS = 32
"""Listeners at the same time. The page of another one polls instead."""

RETRY = b"retry: 3000\n"
"""Milliseconds after which a browser connects again when the answer has ended."""


class Events:
    """The stream of events. `snapshot` is called only while there are listeners, and once for all of them."""

    def __init__(self, snapshot: Callable[[], bytes], seconds: float = SECONDS) -> None:
        self._snapshot = snapshot
        self._seconds = seconds
        self._listeners = 0
        self._next: asyncio.Future[bytes | None] | None = None
        """The next event; None when the stream ends. No future without listeners."""
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request with events, until the client disconnects or `close` is called."""
        if self._is_closed or self._listeners >= MAX_LISTENERS:
            raise web.HTTPServiceUnavailable(text="too many listeners; /status.json has the same\n")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._listeners += 1
        try:
            await response.prepare(request)
            text: bytes | None = RETRY + event(self._snapshot())
            while text is not None:
                upcoming = self._upcoming()
                async with asyncio.timeout(WRITE_SECONDS):
                    await response.write(text)
                text = await asyncio.shield(upcoming)
        except (ConnectionResetError, TimeoutError):
            pass  # the client disconnected, or reads too slowly
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._stop()
        return response

    def close(self) -> None:
        """End the stream of all listeners."""
        self._is_closed = True
        if self._next is not None:
            self._next.set_result(None)
            self._next = None
        self._stop()

    def _upcoming(self) -> asyncio.Future[bytes | None]:
        """Return the next event, which all listeners share; a slow one misses those that come while it receives."""
        if self._is_closed:
            return _ended()
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return self._next

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            waiting, self._next = self._next, None
            if waiting is not None:
                try:
                    waiting.set_result(event(self._snapshot()))
                except Exception as error:  # for the listeners: aiohttp logs it, and browsers connect again
                    waiting.set_exception(error)

    def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


def _ended() -> asyncio.Future[bytes | None]:
    ended: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
    ended.set_result(None)
    return ended


def event(snapshot: bytes) -> bytes:
    """Return an event with a snapshot, which is one line of text."""
    return b"data: " + snapshot + b"\n\n"
