"""Moves damaged content to the quarantine, and reports it."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..decide.records import ManifestRecord
from ..oci.digest import Digest
from ..oci.errors import StorageError
from . import fact_rows
from .capacity import Capacity
from .index_access import IndexAccess
from .quarantine import MAX_BYTES, Quarantine
from .usage import Usage

logger = logging.getLogger("hubcache")


@dataclass(frozen=True, slots=True)
class Damage:
    """Stored content that was found damaged: when (seconds since the epoch), why, and the file that contained it.

    `path` is None for a manifest, which is in a row of the index. `kept` is the path in the quarantine; None when the
    content was too large for it, or missing.
    """

    at: float
    digest: Digest
    why: str
    path: Path | None
    kept: Path | None


class DamagedContent:
    """Removes content that does not match its digest from the store. It is fetched again at the next request.

    The row `damaged/` and the digest, for a repair, contains whether it was a blob or a manifest.
    """

    def __init__(
        self,
        directory: Path,
        index: IndexAccess,
        usage: Usage,
        capacity: Capacity,
        removed: Callable[[Digest], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.count = 0
        """How often content was found damaged since the start."""
        self.last: Damage | None = None
        self._index = index
        self._usage = usage
        self._capacity = capacity
        self._removed = removed
        self._clock = clock
        self._quarantine = Quarantine(directory / "quarantine", clock)
        self._manifests: set[Digest] = set()
        """Manifests that were found damaged when they were read, and are not yet in the quarantine."""

    async def quarantine(self, digest: Digest, content: Path | bytes, why: str) -> None:
        """Move damaged content to the quarantine: the file of a blob, or the row of a manifest.

        Does nothing if the index now has other content for the digest.
        """

        async def remove(digest: Digest) -> None:
            await asyncio.shield(asyncio.ensure_future(self._move(digest, content, why)))

        await self._capacity.purge(digest, remove)

    def add_manifest(self, digest: Digest) -> None:
        """Remember that a manifest was found damaged, for `quarantine_manifests`."""
        self._manifests.add(digest)

    async def quarantine_manifests(self) -> None:
        """Move the manifests that were found damaged when they were read, unless they were fetched again. No client
        received them."""
        for digest in tuple(self._manifests):
            value = self._index.read(f"manifest/{digest}")
            if isinstance(value, bytes) and not digest.matches(ManifestRecord.decode(value).body):
                await self.quarantine(digest, value, "does not match its digest")
            self._manifests.discard(digest)

    async def forget(self, digests: Iterable[Digest]) -> None:
        """Forget that content was damaged: it is stored again, or not needed any more."""
        index, keys = self._index.opened(), [f"damaged/{digest}" for digest in digests]
        await self._index.write(lambda: index.write_batches({}, deleted=keys))

    def trim(self) -> int:
        """Remove the oldest files beyond the limits of the quarantine; return the bytes of those that stay."""
        self._quarantine.max_bytes = min(MAX_BYTES, self._capacity.max_bytes // 10)
        return self._quarantine.trim()

    async def recount(self) -> None:
        """Trim the quarantine unless it was empty, and count its bytes again: users may delete its files."""
        if self._usage.quarantined:
            self._usage.quarantined = await self._index.run(self.trim)

    async def _move(self, digest: Digest, content: Path | bytes, why: str) -> None:
        index = self._index.opened()
        row = f"blob/{digest}" if isinstance(content, Path) else f"manifest/{digest}"

        def move() -> tuple[Path | None, int] | None:
            if index.get(row) != content:
                return None
            self._quarantine.max_bytes = min(MAX_BYTES, self._capacity.max_bytes // 10)
            if isinstance(content, Path):
                kept = self._quarantine.move(content, digest)
            else:
                kept = self._quarantine.write(content, digest)
            with contextlib.suppress(StorageError):  # damaged content must not stay because the disk is full
                index.set(f"damaged/{digest}", row.partition("/")[0], fact_rows.FACT_LIFETIME)
            index.delete(f"blob/{digest}", f"manifest/{digest}")
            total = self.trim()
            return (kept if kept is not None and os.path.lexists(kept) else None), total

        moved = await self._index.write(move)
        if moved is None:  # the content has been fetched again, and is kept
            self._capacity.keep(digest)
            return
        kept, self._usage.quarantined = moved
        self._removed(digest)
        self.count += 1
        path = content if isinstance(content, Path) else None
        self.last = Damage(self._clock(), digest, why, path, kept)
        logger.warning(
            "hubcache: stored content is damaged and will be fetched again: %s, %s, %s; %s",
            digest,
            path or "a row of the index",
            why,
            f"kept as {kept}" if kept else "not kept",
        )
