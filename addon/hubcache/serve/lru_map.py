"""A bounded map that reports what it drops."""

from collections.abc import Callable

from cachetools import LRUCache


class LRUMap[Key, Value](LRUCache[Key, Value]):
    """A map of `size` entries that drops the least recently used one, and calls `dropped` with its key and value."""

    def __init__(self, size: int, dropped: Callable[[Key, Value], None]) -> None:
        super().__init__(size)
        self._dropped = dropped

    def popitem(self) -> tuple[Key, Value]:
        """Remove the least recently used entry; called for a new entry when the map is full."""
        key, value = super().popitem()
        self._dropped(key, value)
        return key, value
