"""Remembers when content changed or was refused, so that earlier answers of the registry are not reused.

The bucket holds answers of all nodes. This node's own knowledge is newer where a push, or another node's event, or a
refusal of the registry came after such an answer.
"""

from collections import OrderedDict

MAX_TIMES = 10_000
"""Repositories and references whose last time is known individually, each some 300 bytes."""


class ChangeTimes:
    """Times by key, in seconds since the epoch by this machine's clock.

    Memory is bounded: when an entry is dropped, its time counts for all keys without an entry of their own, so that an
    answer that is too old is never taken for a current one. With `forgets`, it is forgotten: for keys that clients can
    invent, which must not outdate all others.
    """

    def __init__(self, *, forgets: bool = False) -> None:
        self._forgets = forgets
        self._times = OrderedDict[tuple[str, ...], float]()
        self._highest_dropped = 0.0

    def record(self, at: float, *key: str) -> None:
        """Record that answers about this key from before `at` are not to be reused."""
        self._times[key] = max(at, self.last(*key))
        self._times.move_to_end(key)
        if len(self._times) > MAX_TIMES:
            _, dropped = self._times.popitem(last=False)
            if not self._forgets:
                self._highest_dropped = max(self._highest_dropped, dropped)

    def last(self, *key: str) -> float:
        """Return the time before which answers about this key are not to be reused."""
        return self._times.get(key, self._highest_dropped)
