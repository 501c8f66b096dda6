"""The store: content by digest within a size cap, and what is known of repositories and tags.

Reads are quick and synchronous; everything that writes goes to one writer thread and is awaited. When the directory
cannot be used, reads find nothing, writes raise `StorageError`, and `problem` says why.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from ..decide.records import ManifestRecord, encode_clock, encode_row
from ..oci.digest import Digest
from ..oci.errors import StorageError, StoreTooNew
from ..oci.pin import Pin
from .facts import Facts
from .index import Index
from .inventory import CLOCK, children_of, take_inventory
from .ledger import Ledger, on_disk
from .room import Rooms
from .staging import Staged
from .stored import StoredBlob, is_good

logger = logging.getLogger("hubcache")

FORMAT = 1
"""Version of the rows and files; a store with a higher one is left alone."""

_CLOSED = "closed"
"""Row of a store that was closed in order, and so needs no look at every file when it is opened."""

_EXTENSION = 8 << 20
"""Bytes by which a reservation grows while the size is not known."""


class Store(Facts):
    """One directory. `rooms` has the limits, which may be changed at any time, and the retention policy."""

    def __init__(self, directory: Path, capacity: int, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.directory = directory
        self._clock = clock
        self.pins: tuple[Pin, ...] = ()
        self.ledger = Ledger()
        self.rooms = Rooms(directory, capacity, self.ledger, clock)
        self._lock_fd: int | None = None
        self._swept = False

    # -- life ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open or create the directory, sweep what a killed process left, read the ledger.

        Raises `StoreTooNew`, or `StorageError` when the directory cannot be used or another process has it.
        """
        index = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock()
            self._staging.mkdir(exist_ok=True, mode=0o700)
            index = Index(self.directory / "store")
            self._check_format(index)
            if not self._swept:  # else what is there is of running fills
                for leftover in self._staging.iterdir():
                    leftover.unlink()
                self._swept = True
            take_inventory(index, self.ledger, self.rooms.retention, self._clock())
            if index.get(_CLOSED) is None:
                index.sweep()
            index.delete(_CLOSED)
            index.settle()
            self._index, index = index, None
        except OSError as error:
            problem = f"store directory {self.directory} cannot be used: {error.strerror or error}"
            self._problems["directory"] = problem
            raise StorageError(problem) from error
        except StorageError as error:
            self._problems["directory"] = str(error)
            raise
        finally:
            if index is not None:
                index.close()
        self._damaged = False
        self._problems.clear()

    def _lock(self) -> None:
        if self._lock_fd is None:
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise StorageError(f"store directory {self.directory} is in use by another process") from error
            self._lock_fd = fd

    def _check_format(self, index: Index) -> None:
        found = index.get("format")
        if found is None:
            index.set("format", str(FORMAT))
        elif not str(found).isdigit() or int(found) > FORMAT:
            raise StoreTooNew(
                f"store {self.directory} has format {found}, this program reads up to {FORMAT}: "
                "use the newer program, or another hubcache_dir"
            )

    @property
    def _staging(self) -> Path:
        return self.directory / "staging"

    async def close(self) -> None:
        """Write what is pending and let another process have the directory."""
        try:
            index = self._index
            if index is not None:
                await self.flush()
                if not self.problem:
                    await self._write(lambda: index.set(_CLOSED, ""))
        finally:
            await self._close_index()
            self._writer.shutdown()
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None

    async def _close_index(self) -> None:
        """Close the connections of both threads."""
        index, self._index = self._index, None
        if index is not None:
            await asyncio.get_running_loop().run_in_executor(self._writer, index.close)
            index.close()

    # -- content ------------------------------------------------------------------------------------------------

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
        try:
            fd = os.open(path, os.O_RDONLY) if isinstance(path, Path) else None
        except FileNotFoundError:
            fd = None
        except OSError as error:  # too many open files, say: which is not the blob's fault
            raise StorageError(f"cannot open a stored blob: {error.strerror or error}") from error
        with contextlib.ExitStack() as opened:
            if fd is not None and isinstance(path, Path):
                opened.callback(os.close, fd)
                if await is_good(fd, path, digest, size):
                    opened.pop_all()
                    self.ledger.hold(digest)
                    return StoredBlob(fd, size, path, lambda: self.ledger.release(digest))
        if self._read(f"blob/{digest}") != path:  # it was fetched again while this one was verified
            return await self.open_blob(digest)
        logger.warning("hubcache: the file of %s is gone or damaged; it will be fetched again", digest)
        if not await self.rooms.purge(digest, self.remove):
            await self.remove(digest)
        return None

    def manifest(self, digest: Digest) -> ManifestRecord | None:
        """A stored manifest."""
        if digest not in self.ledger.children:
            return None
        value = self._read(f"manifest/{digest}")
        return ManifestRecord.decode(value) if isinstance(value, bytes) else None

    async def put_manifest(self, digest: Digest, record: ManifestRecord) -> None:
        """Store a verified manifest."""
        index, size = self._opened(), len(record.body)
        await self._reserve(digest, size)
        try:
            await self._write(lambda: index.set(f"manifest/{digest}", record.encode()))
            self._added(digest, size, children_of(record))
        finally:
            self.ledger.reserved -= on_disk(size)

    async def stage(self, digest: Digest, size: int) -> Staged:
        """Begin to store `size` bytes: makes room first, so that the cap holds while the file grows.

        Raises `NotStored` when the policy does not want it.
        """
        await self._reserve(digest, size)
        try:
            return Staged(self._staging / f"{digest.hex}.{secrets.token_hex(4)}", digest, on_disk(size))
        except StorageError:
            self.ledger.reserved -= on_disk(size)
            raise

    async def extend(self, staged: Staged, total: int) -> None:
        """Reserve in steps for content whose size the upstream did not tell."""
        while staged.reserved < total:
            await self._reserve(staged.digest, _EXTENSION)
            staged.reserved += _EXTENSION

    async def commit(self, staged: Staged) -> None:
        """Take verified staged content into the store."""
        index = self._opened()
        file = await asyncio.to_thread(staged.sync)  # seconds on a slow disk, for which no row should wait
        await self._write(lambda: index.set(f"blob/{staged.digest}", file))
        self._added(staged.digest, staged.written, None)
        self._problems.pop("files", None)

    def _added(self, digest: Digest, size: int, children: tuple[Digest, ...] | None) -> None:
        self.ledger.add(digest, size, children)
        self.rooms.retention.stored(digest, on_disk(size), self._clock())

    def finish(self, staged: Staged) -> None:
        """End staging, committed or not: returns the reservation and removes an uncommitted file."""
        self.ledger.reserved -= staged.reserved
        staged.close()

    async def remove(self, digest: Digest) -> None:
        """Remove content, whatever it is. It counts as stored until its file is gone."""
        index = self._opened()
        try:
            await self._write(
                lambda: index.set_many({}, gone=(f"blob/{digest}", f"manifest/{digest}", f"private/{digest}"))
            )
        except StorageError:
            if digest in self.ledger.sizes:
                self.rooms.retention.stored(digest, on_disk(self.ledger.sizes[digest]), self._clock())
            raise
        self.ledger.remove(digest)
        self.rooms.retention.removed(digest)
        self.changed()

    async def _reserve(self, digest: Digest, size: int) -> None:
        if self.pins:
            self._pin()
        await self.rooms.reserve(digest, size, self._opened().bytes, self.remove)

    def _pin(self) -> None:
        """Find what is pinned: whatever the pinned tags are now, with all they refer to and all that refers to it."""
        pinned: set[Digest] = set()
        for pin in self.pins:
            if isinstance(pin.reference, Digest):
                roots = {pin.reference}
            else:
                roots = {record.digest for record in self.tags(pin.host, pin.repository, pin.reference).values()}
            pinned |= self.ledger.closure(roots, self.referrers_of(pin.host, pin.repository))
        self.ledger.pinned = frozenset(pinned)

    async def keep_house(self) -> None:
        """Shrink step by step to the limit where that was lowered, and write behind what changed of the policy."""
        if self._damaged:
            await self._close_index()
            self.open()
        self._pin()
        more = True
        while more:
            more = await self.rooms.shrink(self._opened().bytes, self.remove)
        await self.flush()

    async def expire(self) -> None:
        """Remove idle content, and facts whose lifetime is over and that are about nothing that is here."""
        await self.rooms.expire(self.remove)
        await self.renew({str(digest) for digest in self.ledger.sizes})
        await self._write(self._opened().forget_expired)

    # -- popularity ---------------------------------------------------------------------------------------------

    def count_request(self, digest: Digest) -> None:
        """Somebody asked for this content; written behind by `flush`, so that a hit costs no write."""
        self.rooms.retention.requested(digest, self._clock())

    def vouch(self, digest: Digest) -> None:
        """Count requests for content until a full store would admit it."""
        retention, now = self.rooms.retention, self._clock()
        while not retention.asked_enough(digest, now):
            retention.requested(digest, now)

    def was_requested(self, digest: Digest) -> bool:
        """Whether anybody asked for this content, as far as that is remembered."""
        return self.rooms.retention.requests(digest, self._clock()) > 0

    async def flush(self) -> None:
        """Write what changed of the policy since the last flush; a crash loses no more than that."""
        index, retention = self._opened(), self.rooms.retention
        dirty = retention.dirty()
        if not dirty:
            return
        rows: dict[str, object] = {CLOCK: encode_clock(retention.clock())}
        gone = []
        for digest in dirty:
            row = retention.row(digest)
            if row is None:
                gone.append(f"retention/{digest}")
            else:
                rows[f"retention/{digest}"] = encode_row(row)
        try:
            await self._write(lambda: index.set_many(rows, gone=gone))
        except StorageError:
            retention.failed(dirty)
            raise
