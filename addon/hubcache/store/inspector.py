"""Decides which stored files are verified before they are served, and verifies them.

Verifying takes most of a second per gigabyte. A large file therefore counts as good while its size and its time of
change are those it was stored with. These do not show that a disk returns other bytes than were written: for that, a
check can be required. A small file is verified each time.
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
from .disk import is_unchanged
from .file_check import FileCheck

SUSPECT_SECONDS = 3600.0
"""Seconds for which a blob that was found good is not verified again on suspicion: when many machines behind one
address pull the same blob, every machine but the first looks like a client that repeats its download."""

SMALL = 64 << 10
"""Files of up to this many bytes are verified at each request, in at most 50 microseconds or so: workers repeat answers
of this size for a second, even to clients that found that the digest does not match."""

_MAX_REMEMBERED = 50_000
"""Files, and digests, whose verification is remembered."""


class Inspector:
    """Verifies files in its own threads; callers that wait for the same file share one verification."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._required: set[Digest] = set()
        self._found_good: TTLCache[Digest, None] = TTLCache(_MAX_REMEMBERED, SUSPECT_SECONDS, clock)
        self._verified: LRUCache[tuple[Path, int], None] = LRUCache(_MAX_REMEMBERED)
        self._running: dict[Path, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="store-verify")
        self._is_closing = threading.Event()

    def require_check(self, digest: Digest) -> None:
        """Require that this content is verified before it is served again."""
        self._required.add(digest)

    def suspect(self, digest: Digest) -> None:
        """Require a check unless the content was found good within the last hour."""
        if digest not in self._found_good:
            self._required.add(digest)

    @property
    def required(self) -> tuple[Digest, ...]:
        """The content for which a check is required."""
        return tuple(self._required)

    def clear(self, digest: Digest) -> None:
        """Withdraw the requirement of a check: the content was verified or removed."""
        self._required.discard(digest)

    async def check(self, fd: int, path: Path, digest: Digest, size: int) -> None:
        """Check whether an open file may be served; raises `ContentDamaged` or `OSError`."""
        state = os.fstat(fd)
        if state.st_size != size:
            raise ContentDamaged(f"has {state.st_size} bytes instead of {size}")
        if size <= SMALL:
            if not digest.matches(os.pread(fd, size, 0)):
                raise ContentDamaged("does not match its digest")
            self.clear(digest)
            return
        has_changed = not is_unchanged(path, state.st_mtime_ns) and (path, state.st_mtime_ns) not in self._verified
        if has_changed or digest in self._required:
            await self.verify(path, digest, size)
            self._verified[path, state.st_mtime_ns] = None

    async def verify(self, path: Path, digest: Digest, size: int) -> None:
        """Read a file to its end; raises as `check` does. Continues when the callers that wait for it are cancelled."""
        task = self._running.get(path)
        if task is None:
            task = self._running[path] = asyncio.create_task(self._verify(path, digest, size))
            task.add_done_callback(lambda done: self._forget(path, done))
        await asyncio.shield(task)

    async def _verify(self, path: Path, digest: Digest, size: int) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._read, FileCheck(path, digest, size))
        self._found_good[digest] = None
        self.clear(digest)

    def _read(self, check: FileCheck) -> None:
        while check.step():
            if self._is_closing.is_set():
                raise StorageError("the store is being closed")

    def _forget(self, path: Path, task: asyncio.Task[None]) -> None:
        del self._running[path]
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all callers may have been cancelled

    async def close(self) -> None:
        """Stop verifying; callers that wait get `StorageError`."""
        self._is_closing.set()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._threads.shutdown()
