"""What was moved through this proxy, and when: an answer that was asked for before must not be remembered after."""

from cachetools import LRUCache

MAX_MOVES = 10_000
"""Things whose last move is known one by one."""


class ChangeNumbers:
    """Numbers that change when a thing is moved. Bounded: where a move is forgotten, the numbers of all things that are
    not known one by one change, so that what was asked for before it is never taken for new."""

    def __init__(self) -> None:
        self._last = 0
        self._recent = _Recent(MAX_MOVES)

    def current(self, *what: str) -> int:
        """Changes when this thing is moved; compare it before and after."""
        return self._recent.get(what, self._recent.forgotten)

    def advance(self, *what: str) -> None:
        """A thing was moved."""
        self._last += 1
        self._recent[what] = self._last


class _Recent(LRUCache[tuple[str, ...], int]):
    """Knows the highest number that it forgot."""

    forgotten = 0

    def popitem(self) -> tuple[tuple[str, ...], int]:
        what, number = super().popitem()
        self.forgotten = max(self.forgotten, number)
        return what, number
