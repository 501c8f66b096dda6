"""Numbers that change with a tag or a repository: an answer that was requested before a change is not remembered."""

from .lru_map import LRUMap

MAX_RECENT = 10_000
"""Tags or repositories whose last change is known individually."""


class ChangeNumbers:
    """Change numbers by key.

    Memory is bounded: when a key is dropped, the numbers of all keys without an entry of their own change. So an
    answer that was requested before a dropped change is never taken for a current one.
    """

    def __init__(self) -> None:
        self._last = 0
        self._highest_dropped = 0
        self._recent = LRUMap[tuple[str, ...], int](MAX_RECENT, self._drop)

    def current(self, *key: str) -> int:
        """Return a number that changes when this key does; compare it before and after a request."""
        return self._recent.get(key, self._highest_dropped)

    def advance(self, *key: str) -> None:
        """Change the number of this key."""
        self._last += 1
        self._recent[key] = self._last

    def _drop(self, _: tuple[str, ...], number: int) -> None:
        self._highest_dropped = max(self._highest_dropped, number)
