"""Which requests are one pull: popularity counts pulls, not the requests that a client makes of one."""

import time
from collections.abc import Callable, Hashable

SAME_PULL_SECONDS = 10.0
"""A client that asks again for the same within this time (HEAD then GET, a resumed range, a retry) makes one pull. From
the first request on: many machines behind one address, of which there is always one that asks, are many pulls."""

MAX_CLIENTS = 50_000
"""Pairs of client and content that are kept; beyond them all are forgotten, and some pulls count twice."""


class Pulls:
    """Remembers who asked for what a moment ago."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[Hashable, float] = {}

    def begins(self, *who_and_what: Hashable) -> bool:
        """Whether this request is not part of a pull that was counted already."""
        now = self._clock()
        if len(self._begun) >= MAX_CLIENTS:
            self._begun.clear()
        begun = self._begun.get(who_and_what)
        if begun is not None and now - begun < SAME_PULL_SECONDS:
            return False
        self._begun[who_and_what] = now
        return True
