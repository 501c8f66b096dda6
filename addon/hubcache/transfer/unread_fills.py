"""Decides which fills continue without readers.

A client that disconnects often returns for the rest (docker resumes, containerd closes each chunk early), and the next
client benefits from the stored blob. But a client must not be able to cause a hundred downloads by requesting blobs and
disconnecting.
"""

import asyncio
from collections.abc import Callable

from ..oci.digest import Digest
from .fill import Fill

MAX_UNREAD = 4
"""Fills without readers that continue, of blobs that are requested rarely."""

MAX_WANTED = 16
"""Fills without readers that continue, including those of blobs that are requested often."""

GRACE_SECONDS = 10.0
"""How long a fill is paused before it is cancelled; a reader that starts in this time resumes it."""

_NEARLY_BYTES = 1 << 20
_NEARLY_SHARE = 0.75


class UnreadFills:
    """Fills without readers. `is_wanted` returns whether a blob is requested often; `cancel` ends a fill."""

    def __init__(self, is_wanted: Callable[[Digest], bool], cancel: Callable[[Fill], None]) -> None:
        self._is_wanted = is_wanted
        self._cancel = cancel
        self._running: dict[Fill, None] = {}
        self._paused: dict[Fill, asyncio.TimerHandle] = {}
        """Paused fills with their timers, the longest paused first."""

    def add(self, fill: Fill) -> None:
        """Add a fill whose last reader has ended. If too many such fills run, pause the least complete one."""
        if _is_nearly_complete(fill):
            return
        self._running[fill] = None
        surplus = self._surplus()
        if surplus is not None:
            del self._running[surplus]
            surplus.pause()
            timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._cancel, surplus)
            self._paused[surplus] = timer

    def remove(self, fill: Fill) -> None:
        """Resume a fill that has readers again, or forget one that has ended."""
        self._running.pop(fill, None)
        timer = self._paused.pop(fill, None)
        if timer is not None:
            timer.cancel()
        fill.resume()

    def free_slot(self) -> None:
        """Cancel the fill that has been paused longest, if there is one, for another that waits for a slot."""
        for fill in self._paused:
            self._cancel(fill)
            break

    def _surplus(self) -> Fill | None:
        """Return the least complete fill when too many are running, else None."""
        rare = [fill for fill in self._running if not self._is_wanted(fill.digest)]
        if len(rare) > MAX_UNREAD or (rare and len(self._running) > MAX_WANTED):
            return min(rare, key=_complete_share)
        return min(self._running, key=_complete_share) if len(self._running) > MAX_WANTED else None


def _complete_share(fill: Fill) -> float:
    """Return how much of a fill has arrived, from 0 to 1."""
    return fill.written / fill.size if fill.size else 0.0


def _is_nearly_complete(fill: Fill) -> bool:
    return fill.size is not None and (
        fill.size - fill.written <= _NEARLY_BYTES or fill.written >= fill.size * _NEARLY_SHARE
    )
