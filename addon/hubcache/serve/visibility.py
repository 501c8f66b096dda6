"""The visibility of repositories (public or not) as last observed, in memory and in the store."""

import math

from cachetools import LRUCache

from ..decide.records import Visibility
from ..store.store import Store
from .lru_map import LRUMap

MAX_REPOSITORIES = 10_000
"""Repositories whose visibility is kept in memory, in addition to the store."""

type _Key = tuple[str, str]


class VisibilityCache:
    """The last observed visibility of each repository.

    It is kept in memory because the store may fail to write it. Memory is bounded, and reaching the bound must not make
    a repository public again: when it drops an observation that made a repository private and that could not be stored,
    all stored observations up to that time count as unknown.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: LRUCache[_Key, Visibility] = LRUCache(MAX_REPOSITORIES)
        self._unwritten = LRUMap[_Key, Visibility](MAX_REPOSITORIES, self._drop_unwritten)
        """Observations that closed a repository, until the store has them."""
        self._closed_at = self._dropped_until = -math.inf

    def get(self, host: str, repository: str) -> Visibility | None:
        """Return the last observation; None when nothing is known."""
        key = (host, repository)
        recent = self._unwritten.get(key) or self._recent.get(key)
        if recent is not None:
            return recent
        stored = self._store.registries.visibility(host, repository)
        if stored is not None and stored.public and stored.checked_at <= self._dropped_until:
            return None
        return stored

    def observe(self, host: str, repository: str, visibility: Visibility) -> None:
        """Record an observation in place of the last one."""
        key = (host, repository)
        self._unwritten.pop(key, None)
        self._recent[key] = visibility
        self._store.index.on_change()

    def close(self, host: str, repository: str, visibility: Visibility, now: float) -> None:
        """Record an observation that makes content unavailable; it is kept until `written` is called.

        `now` is the time in seconds since the epoch.
        """
        self.observe(host, repository, visibility)
        self._closed_at = now
        self._unwritten[host, repository] = visibility

    def written(self, host: str, repository: str, visibility: Visibility) -> None:
        """Record that the store has this observation."""
        if self._unwritten.get((host, repository)) == visibility:
            del self._unwritten[host, repository]

    def _drop_unwritten(self, _: _Key, __: Visibility) -> None:
        self._dropped_until = max(self._dropped_until, self._closed_at)
