"""Which requests are one pull: popularity counts pulls, not the requests that a client makes of one."""

import time
from collections.abc import Callable, Hashable

SAME_PULL_SECONDS = 10.0
"""A client that asks again for the same within this time (HEAD then GET, a resumed range, a retry) makes one pull."""

MAX_CLIENTS = 50_000
"""Pairs of client and content that are kept; beyond them all are forgotten, and some pulls count twice."""


class Pulls:
    """Remembers who asked for what a moment ago."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[Hashable, float] = {}

    def begins(self, *who_and_what: Hashable) -> bool:
        """Whether this request is not part of a pull that was counted already."""
        now = self._clock()
        if len(self._last) >= MAX_CLIENTS:
            self._last.clear()
        before = self._last.get(who_and_what)
        self._last[who_and_what] = now
        return before is None or now - before >= SAME_PULL_SECONDS
