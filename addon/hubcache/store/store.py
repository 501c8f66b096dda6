"""The store: content by digest within a size cap, and facts about repositories and tags.

Reads are quick and synchronous; writes run in one writer thread and are awaited. While the directory cannot be used,
reads find nothing, writes raise `StorageError`, and `problem` is the reason.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from ..decide.records import ManifestRecord
from ..oci.digest import Digest
from ..oci.errors import ContentDamaged, StorageError
from ..oci.image_name import ImageName
from .blob_opening import open_verified
from .capacity import Capacity
from .damage import DamagedContent
from .directory import StoreDirectory
from .fact_rows import renew_facts, renew_private
from .index import Index
from .index_access import IndexAccess
from .inspector import Inspector
from .inventory import children_of, stored_last, take_inventory
from .links import Links
from .pins import Pins, pinned_content
from .popularity import Popularity
from .private_content import PrivateContent
from .registry_facts import RegistryFacts
from .scrub_status import ScrubStatus
from .staging import Staged
from .stored_blob import StoredBlob
from .tag_facts import TagFacts
from .usage import Usage, size_on_disk

logger = logging.getLogger("hubcache")

_CLOSED = "closed"
"""Row of a store that was closed in order, so that the next start need not list every file."""

_EXTENSION = 8 << 20
"""Bytes by which a reservation grows while the size is not known."""


class Store:
    """Content in one directory, with its limits (`capacity`), request counts (`popularity`) and facts: `tags`, `links`
    between repositories and digests, `private` content, and `registries`.
    """

    def __init__(self, directory: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.index = IndexAccess()
        self.tags = TagFacts(self.index)
        self.links = Links(self.index)
        self.private = PrivateContent(self.index)
        self.registries = RegistryFacts(self.index)
        self.usage = Usage()
        self.capacity = Capacity(directory, max_bytes, self.usage, clock)
        self.popularity = Popularity(self.index, self.capacity.retention, clock)
        self.inspector = Inspector()
        self.damage = DamagedContent(directory, self.index, self.usage, self.capacity, self._removed, clock)
        self.scrub_status = ScrubStatus()
        self.pins = Pins(self.index)
        self.unclean = False
        """Whether the store was not closed in order: all content is to be verified soon."""
        self._clock = clock
        self._folder = StoreDirectory(directory)
        self._was_opened = False
        self._reopening = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the directory is open."""
        return self.index.current is not None

    @property
    def problem(self) -> str | None:
        """Why content cannot be stored at present, or None."""
        return self.index.problem

    def apply(
        self,
        *,
        max_bytes: int,
        max_blob: int,
        min_free: int | None,
        admit_after: int,
        half_life: float,
        expire_after: float,
        pins: tuple[ImageName, ...],
    ) -> None:
        """Change the options: limits in bytes (see `Capacity`), the policy's parameters (see `Retention`), and the
        images that are never evicted, besides those that were pinned while the program ran."""
        capacity, retention = self.capacity, self.capacity.retention
        capacity.max_bytes, capacity.max_blob, capacity.min_free = max_bytes, max_blob, min_free
        retention.admit_after, retention.half_life = admit_after, half_life
        retention.expire_after = expire_after
        self.pins.configured = pins

    # -- opening and closing ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open or create the directory, remove the leftovers of a killed process, and read the inventory.

        Raises `StoreTooNew`, or `StorageError` when the directory cannot be used or another process has it.
        """
        index = None
        try:
            index = self._folder.open()
            is_first = not self._was_opened
            if is_first:  # later, the files there belong to running fills
                self._folder.remove_leftovers()
                self._was_opened = True
            if index.get(_CLOSED) is None:
                self._recover(index, verify=is_first)
            take_inventory(index, self.usage, self.capacity.retention, self._clock())
            renew_private(index, self.usage.sizes)
            self.pins.load(index)
            self.usage.quarantined = self.damage.trim()
            index.delete(_CLOSED)
            index.checkpoint()
            self.index.current, index = index, None
            self.private.clear_cache()
        except OSError as error:
            problem = f"store directory {self.directory} cannot be used: {error.strerror or error}"
            self.index.problems["directory"] = problem
            raise StorageError(problem) from error
        except StorageError as error:
            self.index.problems["directory"] = str(error)
            raise
        finally:
            if index is not None:
                index.close()
        self.index.is_damaged = False
        self.index.problems.clear()

    def _recover(self, index: Index, *, verify: bool) -> None:
        """After an unclean stop, remove files without a row and rows without a file, and mark content for verification.

        A killed process damages nothing: a row is written when its file is on disk. A power cut can damage content if
        the disk had not written what it had acknowledged. Only the last writes are at risk, so the content stored last
        is verified before it is first served, and the rest by the scrub. To verify everything first would take a second
        per GB at a moment when all clients return.
        """
        for digest in stored_last(index.reconcile()):
            if verify:
                self.unclean = True
                self.inspector.require_check(digest)

    async def close(self) -> None:
        """Write pending changes, and release the directory for other processes."""
        await self.inspector.close()
        try:
            index = self.index.current
            if index is not None:
                await self.popularity.flush()
                if not self.problem:
                    await self.index.write(lambda: index.set(_CLOSED, ""))
        finally:
            await self.index.close()
            self.index.shut_down()
            self._folder.unlock()

    async def _reopen_if_missing(self) -> None:
        """Open the directory again when its index is damaged, or when the directory or a part of it was deleted."""
        async with self._reopening:
            if not self.is_open:
                return  # the engine tries again to open a store that could not be opened
            if not self.index.is_damaged and self._is_in_place():
                self._folder.restore_staging()
                return
            logger.warning("hubcache: the store in %s is missing or damaged, and is opened again", self.directory)
            await self.index.close()
            self.open()

    def _is_in_place(self) -> bool:
        index = self.index.opened()
        has_blobs = index.has_blobs or len(self.usage.sizes) <= len(self.usage.children)
        return has_blobs and index.is_in_place and self._folder.is_locked

    # -- reading content ----------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the content is stored, as a blob or a manifest."""
        return digest in self.usage.sizes

    def is_manifest(self, digest: Digest) -> bool:
        """Whether the content is stored as a manifest."""
        return digest in self.usage.children

    def blob_size(self, digest: Digest) -> int | None:
        """Return the size of a stored blob; None when it is not stored (or is a manifest)."""
        return None if digest in self.usage.children else self.usage.sizes.get(digest)

    def blob_path(self, digest: Digest) -> Path | None:
        """Return the file of a stored blob."""
        path = self.index.read(f"blob/{digest}")
        return path if isinstance(path, Path) else None

    async def open_blob(self, digest: Digest) -> StoredBlob | None:
        """Open a stored blob; None when it is not stored. A blob whose file is missing or damaged is removed."""
        size = self.blob_size(digest)
        if size is None:
            return None
        path = self.index.read(f"blob/{digest}")
        if path is None and self.problem:  # it may be stored, and the index may be readable again in a moment
            raise StorageError(self.problem)
        if not isinstance(path, Path):  # it is just being evicted, or its row was lost
            await self.capacity.purge(digest, self.remove)
            return None
        try:
            return await open_verified(path, digest, size, self.usage, self.inspector)
        except ContentDamaged as error:
            why = str(error)
        if self.index.read(f"blob/{digest}") != path:  # it was evicted, or fetched again, while this opened it
            return await self.open_blob(digest)
        await self.damage.quarantine(digest, path, why)
        return None

    def manifest(self, digest: Digest) -> ManifestRecord | None:
        """Return a stored manifest. It is verified each time: for 2 KB that takes 4 microseconds, and reading it 8."""
        if digest not in self.usage.children:
            return None
        value = self.index.read(f"manifest/{digest}")
        if not isinstance(value, bytes):
            return None
        record = ManifestRecord.decode(value)
        if not digest.matches(record.body):
            self.damage.add_manifest(digest)
            return None
        return record

    # -- storing content ----------------------------------------------------------------------------------------

    async def put_manifest(self, digest: Digest, record: ManifestRecord) -> None:
        """Store a verified manifest."""
        index, size, children = self.index.opened(), len(record.body), children_of(record)
        await self._reserve(digest, size, log_bytes=size_on_disk(size))
        try:
            await self.index.write(lambda: index.set(f"manifest/{digest}", record.encode()))
            self._added(digest, size, children)
        finally:
            self.usage.reserved -= size_on_disk(size)

    async def stage(self, digest: Digest, size: int) -> Staged:
        """Begin to store `size` bytes. They are reserved first, so that the cap holds while the file grows.

        Raises `NotStored` when the policy refuses the content.
        """
        await self._reopen_if_missing()
        await self._reserve(digest, size)
        try:
            path = self._folder.staging / f"{digest.hex}.{secrets.token_hex(4)}"
            return Staged(path, digest, size_on_disk(size))
        except StorageError:
            self.usage.reserved -= size_on_disk(size)
            raise

    async def extend(self, staged: Staged, total: int) -> None:
        """Reserve up to `total` bytes, in steps, for content whose size the upstream did not declare."""
        while staged.reserved < total:
            await self._reserve(staged.digest, _EXTENSION)
            staged.reserved += _EXTENSION

    async def commit(self, staged: Staged) -> None:
        """Take verified staged content into the store."""
        file = await asyncio.to_thread(staged.sync)  # takes seconds on a slow disk, and no row should wait for that
        index = self.index.opened()
        await self.index.write(lambda: index.set(f"blob/{staged.digest}", file))
        staged.committed = True
        self.inspector.clear(staged.digest)
        self._added(staged.digest, staged.written, None)
        self.usage.reserved -= staged.reserved  # at once: counted twice, it could have other content refused or evicted
        staged.reserved = 0
        self.index.problems.pop("files", None)

    def finish(self, staged: Staged) -> None:
        """End staging, committed or not: release the reservation and remove an uncommitted file."""
        self.usage.reserved -= staged.reserved
        if not staged.committed:
            self.usage.add_removed(staged.digest, size_on_disk(staged.written))
        staged.close()

    async def _reserve(self, digest: Digest, size: int, *, log_bytes: int = 0) -> None:
        """Reserve `size` bytes for content; the index will write `log_bytes` of it to its log as well."""
        self.update_pinned()
        index = self.index.opened()
        await self.capacity.reserve(digest, size, lambda: index.bytes + log_bytes, self.remove)

    def _added(self, digest: Digest, size: int, children: tuple[Digest, ...] | None) -> None:
        self.usage.add(digest, size, children)
        self.capacity.retention.record_stored(digest, size_on_disk(size), self._clock())

    def update_pinned(self) -> None:
        """Find the content of the pinned images again: a pin was added or removed, or a tag has another digest."""
        self.usage.pinned = pinned_content(self.pins, self.tags, self.usage)

    # -- removing content ---------------------------------------------------------------------------------------

    async def remove(self, digest: Digest) -> None:
        """Remove a blob or manifest; it counts as stored until its file is removed. This continues when the caller is
        cancelled: the file would otherwise be removed and still be counted."""
        await asyncio.shield(asyncio.ensure_future(self._remove(digest)))

    async def _remove(self, digest: Digest) -> None:
        index = self.index.opened()
        await self.index.write(lambda: index.delete(f"blob/{digest}", f"manifest/{digest}"))
        self._removed(digest)

    def _removed(self, digest: Digest) -> None:
        self.usage.remove(digest)
        self.capacity.retention.record_removed(digest)
        self.inspector.clear(digest)
        self.index.on_change()

    # -- maintenance --------------------------------------------------------------------------------------------

    async def maintain(self) -> None:
        """Shrink to the limit where that was lowered, write request counts, and quarantine damaged manifests."""
        await self._reopen_if_missing()
        self.update_pinned()
        index, more = self.index.opened(), True
        while more:
            more = await self.capacity.shrink(lambda: index.bytes, self.remove)
        await self.popularity.flush()
        await self.damage.quarantine_manifests()
        await self.damage.recount()

    async def expire(self) -> None:
        """Remove idle content, and expired facts that are not about stored content."""
        await self.capacity.expire(self.remove)
        index, stored = self.index.opened(), self.usage.sizes.keys()
        await self.index.write(lambda: renew_facts(index, stored))
        await self.index.write(index.forget_expired)
