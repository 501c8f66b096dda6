"""Looks up host names in threads of its own, for names that clients choose.

A name whose DNS servers do not answer blocks a thread for half a minute. In the threads of the event loop it would also
delay lookups of other hosts, and the store.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import aiohttp

THREADS = 8
"""Names that are looked up at the same time."""


class OwnThreadsResolver(aiohttp.ThreadedResolver):
    """aiohttp's resolver, with `THREADS` threads of its own."""

    def __init__(self) -> None:
        self._lookups = Lookups(asyncio.get_running_loop())
        super().__init__(cast(asyncio.AbstractEventLoop, self._lookups))

    async def close(self) -> None:
        """Wait for no lookup."""
        self._lookups.close()


class Lookups:
    """Looks names up in threads of its own; it has the two methods of an event loop that aiohttp's resolver calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lookups")
        self._loop = loop

    async def getaddrinfo(self, host: str, port: int, **more: Any) -> Any:
        return await self._loop.run_in_executor(self._threads, partial(socket.getaddrinfo, host, port, **more))

    async def getnameinfo(self, address: Any, flags: int) -> Any:
        return await self._loop.run_in_executor(self._threads, socket.getnameinfo, address, flags)

    def close(self) -> None:
        """Wait for no lookup."""
        self._threads.shutdown(wait=False, cancel_futures=True)
