"""Returns freed memory to the system when the process is quiet.

glibc keeps the memory that was freed in the middle of its heaps: after 500 clients with TLS, a process of 100 MB stays
at 142 MB for ever, and has 109 MB after a call of `malloc_trim`. The call takes 20 milliseconds then, and half of one
if there is nothing to return.
"""

import asyncio
import ctypes
import time
from collections.abc import Callable

SECONDS = 30.0
"""Time between two checks."""

_QUIET = 0.05
"""The part of this time up to which a quiet process uses the processor: a busy one needs its memory again at once."""


def find_malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim` (malloc_trim(3)); None with another C library, as on macOS and in Alpine Linux."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


class MemoryRelease:
    """Calls `trim` with 0 after each time of `SECONDS` in which the process was quiet, from `start` to `stop`.

    `processor_time` returns the seconds of processor time that the process has used.
    """

    def __init__(
        self, trim: Callable[[int], int] | None, processor_time: Callable[[], float] = time.process_time
    ) -> None:
        self._trim = trim
        self._processor_time = processor_time
        self._used = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        if self._trim is not None:
            self._used = self._processor_time()
            self._timer = asyncio.get_running_loop().call_later(SECONDS, self._check)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        assert self._trim is not None
        used, self._used = self._used, self._processor_time()
        if self._used - used <= _QUIET * SECONDS:
            self._trim(0)
            self._used = self._processor_time()
        self._timer = asyncio.get_running_loop().call_later(SECONDS, self._check)
