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
from ..oci.image_name import ImageName
from .content import Content
from .index import BATCH, Index
from .inventory import CLOCK, children_of, renew_private, stored_last, take_inventory
from .staging import Staged
from .usage import on_disk

logger = logging.getLogger("hubcache")

FORMAT = 1
"""Version of the rows and files; a store with a higher one is left alone."""

_CLOSED = "closed"
"""Row of a store that was closed in order, and so needs no look at every file when it is opened."""

_SCRUB = "scrub"
"""Row of how far the verification of all content is."""

_EXTENSION = 8 << 20
"""Bytes by which a reservation grows while the size is not known."""


class Store(Content):
    """One directory. `rooms` has the limits, which may be changed at any time, and the retention policy."""

    def __init__(self, directory: Path, capacity: int, clock: Callable[[], float] = time.time) -> None:
        super().__init__(directory, capacity, clock)
        self.pins: tuple[ImageName, ...] = ()
        self.unclean = False
        """Whether the store was not closed in order: all of it is to be verified soon."""
        self._lock_fd: int | None = None
        self._swept = False
        self._opening = asyncio.Lock()

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
            is_first = not self._swept
            if is_first:  # else what is there is of running fills
                for leftover in self._staging.iterdir():
                    leftover.unlink()
                self._swept = True
            if index.get(_CLOSED) is None:
                self._recover(index, doubt=is_first)
            take_inventory(index, self.ledger, self.rooms.retention, self._clock())
            renew_private(index, self.ledger.sizes)
            self.ledger.quarantined = self._trimmed()
            index.delete(_CLOSED)
            index.settle()
            self._index, index = index, None
            self._not_private.clear()
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

    def _recover(self, index: Index, *, doubt: bool) -> None:
        """After an unclean stop: files and rows that do not belong together go, and content is doubted.

        A killed process damages nothing, for a row is written when its file is on disk. A power cut can, on a disk that
        had not written what it said it had: that is of the last moments, so what was stored last is verified before
        it is first served, and the rest by and by (`Scrub`). To verify all of it first would cost a second per GB when
        a whole fleet comes back.
        """
        for digest in stored_last(index.reconcile()):
            if doubt:
                self.unclean = True
                self.inspector.doubt(digest)

    def _lock(self) -> None:
        if self._lock_fd is not None and not self._is_locked():
            os.close(self._lock_fd)
            self._lock_fd = None
        if self._lock_fd is None:
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise StorageError(f"store directory {self.directory} is in use by another process") from error
            self._lock_fd = fd

    def _is_locked(self) -> bool:
        """Whether the file that is locked is still there: another process would not see one that was deleted."""
        path = self.directory / "lock"
        return self._lock_fd is not None and path.exists() and os.path.samestat(path.stat(), os.fstat(self._lock_fd))

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
        await self.inspector.close()
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

    async def put_manifest(self, digest: Digest, record: ManifestRecord) -> None:
        """Store a verified manifest."""
        index, size, children = self._opened(), len(record.body), children_of(record)
        await self._reserve(digest, size, logged=on_disk(size))
        try:
            await self._write(lambda: index.set(f"manifest/{digest}", record.encode()))
            self._added(digest, size, children)
        finally:
            self.ledger.reserved -= on_disk(size)

    async def stage(self, digest: Digest, size: int) -> Staged:
        """Begin to store `size` bytes: makes room first, so that the cap holds while the file grows.

        Raises `NotStored` when the policy does not want it.
        """
        await self._reopen_if_gone()
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
        file = await asyncio.to_thread(staged.sync)  # seconds on a slow disk, for which no row should wait
        index = self._opened()
        await self._write(lambda: index.set(f"blob/{staged.digest}", file))
        staged.committed = True
        self.inspector.trust(staged.digest)
        self._added(staged.digest, staged.written, None)
        self._problems.pop("files", None)

    def _added(self, digest: Digest, size: int, children: tuple[Digest, ...] | None) -> None:
        self.ledger.add(digest, size, children)
        self.rooms.retention.stored(digest, on_disk(size), self._clock())

    def finish(self, staged: Staged) -> None:
        """End staging, committed or not: returns the reservation and removes an uncommitted file."""
        self.ledger.reserved -= staged.reserved
        if not staged.committed:
            self.ledger.linger(staged.digest, on_disk(staged.written))
        staged.close()

    async def _reserve(self, digest: Digest, size: int, *, logged: int = 0) -> None:
        """Make room for `size` bytes of content, of which the index will write `logged` to its log besides."""
        if self.pins:
            self._pin()
        index = self._opened()
        await self.rooms.reserve(digest, size, lambda: index.bytes + logged, self.remove)

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
        await self._reopen_if_gone()
        self._pin()
        index, more = self._opened(), True
        while more:
            more = await self.rooms.shrink(lambda: index.bytes, self.remove)
        await self.flush()
        await self.put_bad_manifests_aside()
        if self.ledger.quarantined:
            self.ledger.quarantined = await self._aside()

    async def _reopen_if_gone(self) -> None:
        """Open the directory again when its index is damaged, or when somebody deleted it or a part of it."""
        async with self._opening:
            if self._index is None or (not self._damaged and self._is_in_place()):
                with contextlib.suppress(OSError):  # then nothing can be staged, which says why
                    self._staging.mkdir(exist_ok=True, mode=0o700)
                return  # one that could not be opened is tried again elsewhere
            logger.warning("hubcache: the store in %s is gone or damaged, and is opened again", self.directory)
            await self._close_index()
            self.open()

    def _is_in_place(self) -> bool:
        index = self._opened()
        has_blobs = index.has_blobs or len(self.ledger.sizes) <= len(self.ledger.children)
        return has_blobs and index.is_in_place and self._is_locked()

    async def expire(self) -> None:
        """Remove idle content, and facts whose lifetime is over and that are about nothing that is here."""
        await self.rooms.expire(self.remove)
        await self.renew(self.ledger.sizes.keys())  # a digest is a `str`
        await self._write(self._opened().forget_expired)

    def scrub_state(self) -> str | None:
        """What `put_scrub_state` was told last."""
        value = self._read(_SCRUB)
        return value if isinstance(value, str) else None

    async def put_scrub_state(self, state: str) -> None:
        """Remember how far the verification of all content is."""
        index = self._opened()
        await self._write(lambda: index.set(_SCRUB, state))

    # -- popularity ---------------------------------------------------------------------------------------------

    def count_request(self, digest: Digest) -> None:
        """Somebody asked for this content; written behind by `flush`, so that a hit costs no write."""
        self.rooms.retention.requested(digest, self._clock())

    def vouch(self, digest: Digest) -> None:
        """Count requests for content until a full store would admit it."""
        retention, now = self.rooms.retention, self._clock()
        while not retention.asked_enough(digest, now):
            retention.requested(digest, now)

    def is_wanted(self, digest: Digest) -> bool:
        """Whether this content was asked for as often as a full store admits it for."""
        return self.rooms.retention.asked_enough(digest, self._clock())

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

        def write() -> None:
            keys = list(rows)
            for start in range(0, len(keys), BATCH):
                index.set_many({key: rows[key] for key in keys[start : start + BATCH]})
            for start in range(0, len(gone), BATCH):
                index.set_many({}, gone=gone[start : start + BATCH])

        try:
            await self._write(write)
        except StorageError:
            retention.failed(dirty)
            raise
