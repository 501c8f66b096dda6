"""Stored content: reading, removing, and putting aside what is damaged."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from ..decide.records import ManifestRecord
from ..oci.digest import Digest
from ..oci.errors import ContentDamaged, StorageError
from .capacity import Capacity
from .facts import Facts
from .file_check import Scrubbed
from .inspector import Inspector
from .quarantine import MAX_BYTES, Damage, Quarantine
from .stored_blob import DAMAGE, StoredBlob, open_regular
from .usage import Usage, on_disk

logger = logging.getLogger("hubcache")


class Content(Facts):
    """Blobs and manifests by digest. `rooms` has the limits, which may be changed at any time, and the policy."""

    def __init__(self, directory: Path, capacity: int, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.directory = directory
        self._clock = clock
        self.ledger = Usage()
        self.rooms = Capacity(directory, capacity, self.ledger, clock)
        self.inspector = Inspector()
        self.damages = 0
        """How often content was found damaged since the start."""
        self.last_damage: Damage | None = None
        self.scrubbed = Scrubbed()
        self._quarantine = Quarantine(directory / "quarantine", clock)
        self._bad_manifests: set[Digest] = set()
        """Found damaged when they were read, and not yet put aside."""

    # -- reading ------------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the content is stored, blob or manifest."""
        return digest in self.ledger.sizes

    def is_manifest(self, digest: Digest) -> bool:
        """Whether the content is stored, and a manifest."""
        return digest in self.ledger.children

    def blob_size(self, digest: Digest) -> int | None:
        """Size of a stored blob; None when it is not stored (or is a manifest)."""
        return None if digest in self.ledger.children else self.ledger.sizes.get(digest)

    async def open_blob(self, digest: Digest) -> StoredBlob | None:
        """Open a stored blob. One whose file is gone or holds something else is dropped, and None returned."""
        size = self.blob_size(digest)
        if size is None:
            return None
        path = self._read(f"blob/{digest}")
        if path is None and self.problem:  # it may be there, and the index be read again in a moment
            raise StorageError(self.problem)
        if not isinstance(path, Path):  # it is just being evicted, or its row was lost
            await self.rooms.purge(digest, self.remove)
            return None
        try:
            return await self._open_file(path, digest, size)
        except ContentDamaged as error:
            why = str(error)
        if self._read(f"blob/{digest}") != path:  # it was evicted, or fetched again, while this one was opened
            return await self.open_blob(digest)
        await self.condemn(digest, path, why)
        return None

    async def _open_file(self, path: Path, digest: Digest, size: int) -> StoredBlob:
        """Open a file that is as it was stored; raises `ContentDamaged` for another."""
        with contextlib.ExitStack() as opened:
            try:
                fd = open_regular(path)
                opened.callback(os.close, fd)
                self.ledger.hold(digest)
                opened.callback(self.ledger.release, digest)
                await self.inspector.check(fd, path, digest, size)
            except FileNotFoundError as error:
                raise ContentDamaged("is gone") from error
            except OSError as error:
                if error.errno in DAMAGE:
                    raise ContentDamaged(f"cannot be opened: {error.strerror}") from error
                # Too many open files, say: which is not the blob's fault.
                raise StorageError(f"cannot open a stored blob: {error.strerror or error}") from error
            opened.pop_all()
        return StoredBlob(fd, size, path, lambda: self.ledger.release(digest), lambda: self.inspector.doubt(digest))

    def blob_path(self, digest: Digest) -> Path | None:
        """The file of a stored blob."""
        path = self._read(f"blob/{digest}")
        return path if isinstance(path, Path) else None

    def manifest(self, digest: Digest) -> ManifestRecord | None:
        """A stored manifest, verified each time: with 2 KB that takes 4 microseconds, and reading its row 8."""
        if digest not in self.ledger.children:
            return None
        value = self._read(f"manifest/{digest}")
        if not isinstance(value, bytes):
            return None
        record = ManifestRecord.decode(value)
        if not digest.matches(record.body):
            self._bad_manifests.add(digest)
            return None
        return record

    # -- removing -----------------------------------------------------------------------------------------------

    async def remove(self, digest: Digest) -> None:
        """Remove content, whatever it is. It counts as stored until its file is gone. Goes on when the caller leaves:
        else the file would be gone, and count for ever."""
        await asyncio.shield(asyncio.ensure_future(self._remove(digest)))

    async def _remove(self, digest: Digest) -> None:
        index = self._opened()
        await self._write(lambda: index.delete(f"blob/{digest}", f"manifest/{digest}"))
        self._removed(digest)

    def _removed(self, digest: Digest) -> None:
        self.ledger.remove(digest)
        self.rooms.retention.removed(digest)
        self.inspector.trust(digest)
        self.changed()

    # -- damage -------------------------------------------------------------------------------------------------

    async def condemn(self, digest: Digest, content: Path | bytes, why: str) -> None:
        """Put content aside that is not what its digest says (the file of a blob, the row of a manifest), and tell.
        It is fetched anew when somebody asks for it."""

        async def put_aside(digest: Digest) -> None:
            await asyncio.shield(asyncio.ensure_future(self._put_aside(digest, content, why)))

        await self.rooms.purge(digest, put_aside)

    async def _put_aside(self, digest: Digest, content: Path | bytes, why: str) -> None:
        index = self._opened()
        row = f"blob/{digest}" if isinstance(content, Path) else f"manifest/{digest}"

        def put() -> tuple[Path | None, int] | None:
            if index.get(row) != content:
                return None
            aside = self._quarantine
            aside.most = self._most_aside
            kept = aside.move(content, digest) if isinstance(content, Path) else aside.put(content, digest)
            index.delete(f"blob/{digest}", f"manifest/{digest}")
            total = self._trimmed()
            return (kept if kept is not None and os.path.lexists(kept) else None), total

        done = await self._write(put)
        if done is None:  # it was fetched again meanwhile
            self._keep(digest)
            return
        kept, self.ledger.quarantined = done
        self._removed(digest)
        self.damages += 1
        path = content if isinstance(content, Path) else None
        self.last_damage = Damage(self._clock(), digest, why, path, kept)
        logger.warning(
            "hubcache: stored content is damaged and will be fetched again: %s, %s, %s; %s",
            digest,
            path or "a row of the index",
            why,
            f"kept as {kept}" if kept else "not kept",
        )

    def _keep(self, digest: Digest) -> None:
        """The policy gave up content that stays."""
        if digest in self.ledger.sizes:
            self.rooms.retention.stored(digest, on_disk(self.ledger.sizes[digest]), self._clock())

    @property
    def _most_aside(self) -> int:
        return min(MAX_BYTES, self.rooms.capacity // 10)

    async def _aside(self) -> int:
        """Bytes of what is put aside, after what is too much of it is gone."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._trimmed)

    def _trimmed(self) -> int:
        self._quarantine.most = self._most_aside
        return self._quarantine.trim()

    async def put_bad_manifests_aside(self) -> None:
        """Those that were found damaged when they were read, unless they were fetched again; nobody was given them."""
        for digest in tuple(self._bad_manifests):
            value = self._read(f"manifest/{digest}")
            if isinstance(value, bytes) and not digest.matches(ManifestRecord.decode(value).body):
                await self.condemn(digest, value, "does not match its digest")
            self._bad_manifests.discard(digest)
