"""Which fills go on although nobody reads them any more.

A client that leaves comes back for the rest more often than not (docker resumes, containerd closes early for each
chunk), and the next client finds what is stored. But a client must not have a hundred blobs fetched by asking for each
and leaving.
"""

import asyncio
from collections.abc import Callable

from ..oci.digest import Digest
from .fill import Fill

MAX_UNREAD = 4
"""Fills that go on though nobody reads them, of blobs that are not asked for often."""

MAX_WANTED = 16
"""Fills that go on though nobody reads them, together with those of blobs that are asked for often."""

GRACE_SECONDS = 10.0
"""A fill that does not go on stands still for so long before it is given up: who comes back goes on with it."""

_NEARLY_BYTES = 1 << 20
_NEARLY_SHARE = 0.75


class UnreadFills:
    """Fills without readers. `is_wanted` tells whether a blob is asked for often; `give_up` ends a fill."""

    def __init__(self, is_wanted: Callable[[Digest], bool], give_up: Callable[[Fill], None]) -> None:
        self._is_wanted = is_wanted
        self._give_up = give_up
        self._going: dict[Fill, None] = {}
        self._standing: dict[Fill, asyncio.TimerHandle] = {}
        """Those that have stood still longest come first."""

    def left(self, fill: Fill) -> None:
        """The last reader of a fill left: it goes on, or another one stands still for it."""
        if _is_nearly_done(fill):
            return
        self._going[fill] = None
        surplus = self._surplus()
        if surplus is not None:
            del self._going[surplus]
            surplus.pause()
            timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up, surplus)
            self._standing[surplus] = timer

    def forget(self, fill: Fill) -> None:
        """A fill is read again, or has ended."""
        self._going.pop(fill, None)
        timer = self._standing.pop(fill, None)
        if timer is not None:
            timer.cancel()
        fill.resume()

    def make_room(self) -> None:
        """Others wait for a slot: give up what has stood still longest, if anything."""
        for fill in self._standing:
            self._give_up(fill)
            break

    def _surplus(self) -> Fill | None:
        """The fill that is worth going on least, where too many do: the least complete."""
        rare = [fill for fill in self._going if not self._is_wanted(fill.digest)]
        if len(rare) > MAX_UNREAD or (rare and len(self._going) > MAX_WANTED):
            return min(rare, key=_share)
        return min(self._going, key=_share) if len(self._going) > MAX_WANTED else None


def _share(fill: Fill) -> float:
    """How much of a fill is here, 0 to 1."""
    return fill.written / fill.size if fill.size else 0.0


def _is_nearly_done(fill: Fill) -> bool:
    return fill.size is not None and (
        fill.size - fill.written <= _NEARLY_BYTES or fill.written >= fill.size * _NEARLY_SHARE
    )
