"""Which stored files are verified before they are served, and verifying them.

Verifying costs most of a second per gigabyte, so a large file counts as good while its size and its time of change are
what they were, unless there is a reason to doubt: those do not change when a disk gives back other bytes than it was
given. A small one is verified each time.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cachetools import LRUCache, TTLCache

from ..oci.digest import Digest
from ..oci.errors import ContentDamaged, StorageError
from .disk import is_untouched
from .file_check import FileCheck

SUSPECT_SECONDS = 3600.0
"""A blob that was found good is not verified again on suspicion alone for so long: of many machines behind one address
that pull the same, each but the first looks like one that asks again."""

SMALL = 64 << 10
"""Bytes up to which a file is verified each time, in some 50 microseconds at most: workers repeat answers of this size
for a second, to clients that found the digest wrong, too."""

_REMEMBERED = 50_000


class Inspector:
    """Verifies in threads of its own, one digest once at a time, whoever waits for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._doubted: set[Digest] = set()
        self._found_good: TTLCache[Digest, None] = TTLCache(_REMEMBERED, SUSPECT_SECONDS, clock)
        self._touched: LRUCache[tuple[Path, int], None] = LRUCache(_REMEMBERED)
        self._running: dict[Path, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="store-verify")
        self._ended = threading.Event()

    def doubt(self, digest: Digest) -> None:
        """This content is to be verified before it is served again."""
        self._doubted.add(digest)

    def suspect(self, digest: Digest) -> None:
        """The same, unless it was found good within the last hour."""
        if digest not in self._found_good:
            self._doubted.add(digest)

    @property
    def doubted(self) -> tuple[Digest, ...]:
        """What is to be verified."""
        return tuple(self._doubted)

    def trust(self, digest: Digest) -> None:
        """This content was verified, or is not there any more."""
        self._doubted.discard(digest)

    async def check(self, fd: int, path: Path, digest: Digest, size: int) -> None:
        """See whether an open file may be served; raises `ContentDamaged`, or `OSError`."""
        state = os.fstat(fd)
        if state.st_size != size:
            raise ContentDamaged(f"has {state.st_size} bytes instead of {size}")
        if size <= SMALL:
            if not digest.matches(os.pread(fd, size, 0)):
                raise ContentDamaged("does not match its digest")
            self.trust(digest)
            return
        touched = not is_untouched(path, state.st_mtime_ns) and (path, state.st_mtime_ns) not in self._touched
        if touched or digest in self._doubted:
            await self.verify(path, digest, size)
            self._touched[path, state.st_mtime_ns] = None

    async def verify(self, path: Path, digest: Digest, size: int) -> None:
        """Read a file to its end; raises as `check` does. Goes on when those who wait for it leave."""
        task = self._running.get(path)
        if task is None:
            task = self._running[path] = asyncio.create_task(self._verify(path, digest, size))
            task.add_done_callback(lambda done: self._settle(path, done))
        await asyncio.shield(task)

    async def _verify(self, path: Path, digest: Digest, size: int) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._read, FileCheck(path, digest, size))
        self._found_good[digest] = None
        self.trust(digest)

    def _read(self, proof: FileCheck) -> None:
        while proof.step():
            if self._ended.is_set():
                raise StorageError("the store is being closed")

    def _settle(self, path: Path, task: asyncio.Task[None]) -> None:
        del self._running[path]
        if not task.cancelled():
            task.exception()  # mark as retrieved: all who waited may have left

    async def close(self) -> None:
        """Give up what is being verified."""
        self._ended.set()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._threads.shutdown()
