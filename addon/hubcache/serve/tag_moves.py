"""Reads and writes the times at which tags moved: they are read once for each popular tag, and written with a delay.

A row is read when clients begin to request a tag, since the tag may move when no client requests it. A crash loses the
moves of a few seconds, which are observed again.
"""

import itertools

from ..decide.tag_changes import TagChanges
from ..decide.watched_tag import WatchedTag
from ..store.store import Store
from .best_effort import BestEffortWriter

MAX_WAITING = 100_000
"""Tags that wait to be read or written; the moves of further ones are not kept for now."""

READS = 20
"""Rows that are read at once, which takes a millisecond."""

_WRITES = 100


class TagMoves:
    """Fills `WatchedTag.changes` from the store, and writes it there."""

    def __init__(self, store: Store, writer: BestEffortWriter) -> None:
        self._store = store
        self._writer = writer
        self._unread: dict[WatchedTag, None] = {}
        self._unwritten: dict[WatchedTag, None] = {}

    def request(self, watched: WatchedTag) -> None:
        """Have the row of this tag read soon."""
        if not watched.is_loaded and len(self._unread) < MAX_WAITING:
            self._unread[watched] = None

    def read(self, watched: WatchedTag) -> None:
        """Read the row of this tag now, unless it was read."""
        if watched.is_loaded:
            return
        watched.is_loaded = True
        stored = self._store.tags.changes(watched.host, watched.repository, watched.tag)
        if stored is not None:
            watched.changes = stored.merged(watched.changes)

    def read_some(self) -> list[WatchedTag]:
        """Read some of the requested rows; return their tags."""
        some = list(itertools.islice(self._unread, READS))
        for watched in some:
            del self._unread[watched]
            self.read(watched)
        return some

    def changed(self, watched: WatchedTag) -> None:
        """Have the row of this tag written soon. A row that was not read yet is not overwritten."""
        if watched.is_loaded and len(self._unwritten) < MAX_WAITING:
            self._unwritten[watched] = None

    def checked(self, watched: WatchedTag) -> None:
        """Begin to record for how long the tag has not moved."""
        if watched.changes is None:
            watched.changes = TagChanges(watched.since)
            self.changed(watched)

    @property
    def has_unwritten(self) -> bool:
        """Whether there are rows to write."""
        return bool(self._unwritten)

    async def write_some(self) -> None:
        """Write some of the changed rows."""
        some = list(itertools.islice(self._unwritten, _WRITES))
        for watched in some:
            del self._unwritten[watched]
        await self._writer.put_moves({(tag.host, tag.repository, tag.tag): tag.changes for tag in some if tag.changes})
