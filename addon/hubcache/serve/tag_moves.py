"""When tags moved, as it is remembered for later runs: read once for a tag, written behind.

A row is read when people begin to ask for a tag: it may move at an hour when nobody does. In a crash, the moves of a
few seconds are lost, and are learned again.
"""

import itertools

from ..decide.tag_changes import TagChanges
from ..decide.watched_tag import WatchedTag
from ..store.store import Store
from .best_effort import BestEffortWriter

MAX_WAITING = 100_000
"""Tags that wait to be read or written; of more, nothing is remembered for now."""

READS = 20
"""Rows that are read in one go: a millisecond."""

_WRITES = 100


class TagMoves:
    """Fills `Watched.moves` from the store, and writes it there."""

    def __init__(self, store: Store, writer: BestEffortWriter) -> None:
        self._store = store
        self._writer = writer
        self._unread: dict[WatchedTag, None] = {}
        self._unwritten: dict[WatchedTag, None] = {}

    def want(self, watched: WatchedTag) -> None:
        """Read the row of this tag before long."""
        if not watched.is_loaded and len(self._unread) < MAX_WAITING:
            self._unread[watched] = None

    def read(self, watched: WatchedTag) -> None:
        """Read the row of this tag now, unless that was done."""
        if watched.is_loaded:
            return
        watched.is_loaded = True
        stored = self._store.tags.changes(watched.host, watched.repository, watched.tag)
        if stored is not None:
            watched.changes = stored.merged(watched.changes)

    def read_some(self) -> list[WatchedTag]:
        """Read some of the rows that are wanted; returns their tags."""
        some = list(itertools.islice(self._unread, READS))
        for watched in some:
            del self._unread[watched]
            self.read(watched)
        return some

    def changed(self, watched: WatchedTag) -> None:
        """The tag moved, or it is known from now on how long it has not. What was not read yet is not overwritten."""
        if watched.is_loaded and len(self._unwritten) < MAX_WAITING:
            self._unwritten[watched] = None

    def looked(self, watched: WatchedTag) -> None:
        """Remember from now on for how long the tag has not moved."""
        if watched.changes is None:
            watched.changes = TagChanges(watched.since)
            self.changed(watched)

    @property
    def has_news(self) -> bool:
        """Whether there is something to write."""
        return bool(self._unwritten)

    async def write_some(self) -> None:
        """Write some of the rows that changed."""
        some = list(itertools.islice(self._unwritten, _WRITES))
        for watched in some:
            del self._unwritten[watched]
        await self._writer.put_moves({(tag.host, tag.repository, tag.tag): tag.changes for tag in some if tag.changes})
