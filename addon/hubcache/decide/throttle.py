"""Limits repeated log lines: one of a kind within a number of seconds. Pure; the clock is an argument."""

from collections.abc import Callable, Hashable

from cachetools import TTLCache

MAX_KINDS = 1000
"""Kinds that are remembered; kinds may contain text from clients, which must not fill the memory."""


class Throttle:
    """Permits one line of each kind within `seconds`."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._logged: TTLCache[Hashable, None] = TTLCache(MAX_KINDS, seconds, clock)

    def permits(self, kind: Hashable) -> bool:
        """Whether to log a line of this kind now; a line that is permitted counts as logged."""
        if kind in self._logged:
            return False
        self._logged[kind] = None
        return True
