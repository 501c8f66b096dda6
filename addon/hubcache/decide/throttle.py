"""Which of many equal log lines are worth telling: one of a kind in so many seconds. Pure; the clock is an argument."""

from collections.abc import Callable, Hashable

from cachetools import TTLCache

MAX_KINDS = 1000
"""Kinds that are remembered; what clients say must not fill the memory."""


class Throttle:
    """`seconds` is how long one line of a kind stands for all of that kind."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._told: TTLCache[Hashable, None] = TTLCache(MAX_KINDS, seconds, clock)

    def permits(self, kind: Hashable) -> bool:
        """Whether to tell a line of this kind now; a line that is permitted counts as told."""
        if kind in self._told:
            return False
        self._told[kind] = None
        return True
