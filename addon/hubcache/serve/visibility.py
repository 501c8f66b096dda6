"""Which repositories are public: what was seen last, in memory and in the store."""

import math

from cachetools import LRUCache

from ..decide.records import Visibility
from ..store.store import Store

MAX_REPOSITORIES = 10_000
"""Repositories whose verdict is kept in memory, beside what the store has."""

type _Key = tuple[str, str]


class VisibilityCache:
    """The store may not take a verdict, so the last ones are kept here. When one is forgotten that closed a repository
    and that the store does not have, all that the store has from before that time counts as unknown: a bound that is
    hit must not open anything."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: LRUCache[_Key, Visibility] = LRUCache(MAX_REPOSITORIES)
        self._unwritten = _Unwritten(MAX_REPOSITORIES)

    def get(self, host: str, repository: str) -> Visibility | None:
        """What was seen last."""
        key = (host, repository)
        recent = self._unwritten.get(key) or self._recent.get(key)
        if recent is not None:
            return recent
        stored = self._store.registries.visibility(host, repository)
        if stored is not None and stored.public and stored.checked_at <= self._unwritten.forgotten_until:
            return None
        return stored

    def see(
        self, host: str, repository: str, visibility: Visibility, *, closes: bool = False, now: float = 0.0
    ) -> None:
        """A verdict, from now on. One that `closes` a repository holds until it is `written`; `now` is the time."""
        key = (host, repository)
        self._unwritten.pop(key, None)
        if closes:
            self._unwritten.now = now
            self._unwritten[key] = visibility
        self._recent[key] = visibility
        self._store.index.on_change()

    def written(self, host: str, repository: str, visibility: Visibility) -> None:
        """The store has this verdict."""
        if self._unwritten.get((host, repository)) == visibility:
            del self._unwritten[host, repository]


class _Unwritten(LRUCache[_Key, Visibility]):
    """Knows until when verdicts came of which it has forgotten some."""

    now = 0.0
    forgotten_until = -math.inf

    def popitem(self) -> tuple[_Key, Visibility]:
        found = super().popitem()
        self.forgotten_until = max(self.forgotten_until, self.now)
        return found
