"""Counts requests for content, and writes the counts to the index in batches."""

from collections.abc import Callable

from ..decide.retention import Retention
from ..decide.retention_rows import encode_clock, encode_row
from ..oci.digest import Digest
from ..oci.errors import StorageError
from .index_access import IndexAccess

CLOCK = "retention/clock"
"""Row of the policy's clocks, beside the rows of its counts."""


class Popularity:
    """How often content was requested, whether it is stored or not."""

    def __init__(self, index: IndexAccess, retention: Retention[Digest], clock: Callable[[], float]) -> None:
        self._index = index
        self._retention = retention
        self._clock = clock
        self.on_request: Callable[[Digest], None] | None = None
        """Is called for each request of a client for content; must not raise."""

    def count_request(self, digest: Digest) -> None:
        """Count a request for this content. `flush` writes it later, so that a hit costs no write."""
        self._retention.record_request(digest, self._clock())
        if self.on_request is not None:
            self.on_request(digest)

    def ensure_admitted(self, digest: Digest) -> None:
        """Count requests for content until a full store admits it."""
        now = self._clock()
        while not self._retention.is_admitted(digest, now):
            self._retention.record_request(digest, now)

    def is_admitted(self, digest: Digest) -> bool:
        """Whether this content was requested often enough for a full store to admit it."""
        return self._retention.is_admitted(digest, self._clock())

    def was_requested(self, digest: Digest) -> bool:
        """Whether a request for this content is remembered."""
        return self._retention.requests(digest, self._clock()) > 0

    async def flush(self) -> None:
        """Write the counts that changed since the last flush; a crash loses only later counts."""
        index, retention = self._index.opened(), self._retention
        changed = retention.take_changed()
        if not changed:
            return
        rows: dict[str, object] = {CLOCK: encode_clock(retention.clock())}
        deleted = []
        for digest in changed:
            row = retention.row(digest)
            if row is None:
                deleted.append(f"retention/{digest}")
            else:
                rows[f"retention/{digest}"] = encode_row(row)
        try:
            await self._index.write(lambda: index.write_batches(rows, deleted=deleted))
        except StorageError:
            retention.mark_changed(changed)
            raise
