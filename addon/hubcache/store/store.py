"""The store: content by digest within a size cap, and what is known of repositories and tags.

Reads are quick and synchronous; everything that writes goes to one writer thread and is awaited. When the directory
cannot be used, reads find nothing, writes raise `StorageError`, and `problem` says why.
"""

import asyncio
import fcntl
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..decide.records import Link, ManifestRecord, Popularity, TagRecord, Verdict, decode_tags, encode_tags
from ..decide.retention import requested
from ..oci.digest import Digest
from ..oci.errors import StorageError, StoreTooNew
from ..oci.manifest import parse_manifest
from .index import Index
from .ledger import Ledger
from .staging import Staged

FORMAT = 1
"""Version of the rows and files; a store with a higher one is left alone."""

FACT_LIFETIME = 90 * 86400.0
"""Seconds after which a tag, link or popularity row that was not written again is forgotten."""

_INDEX_ALLOWANCE = 1 << 20
"""Bytes kept free below the cap for the index to grow between two looks at its size."""

_EXTENSION = 8 << 20
"""Bytes by which a reservation grows while the size is not known."""


@dataclass(slots=True)
class StoredBlob:
    """An open stored blob; `close` it when sent. Its bytes stay readable even if it is removed meanwhile."""

    fd: int
    size: int
    _release: Callable[[], None]

    def close(self) -> None:
        """Give the file back."""
        os.close(self.fd)
        self._release()


class Store:
    """One directory. `capacity` is in bytes and may be changed at any time."""

    def __init__(self, directory: Path, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.capacity = capacity
        self._clock = clock
        self._problems: dict[str, str] = {}
        self.ledger = Ledger()
        self.evictions = 0
        self._index: Index | None = None
        self._lock_fd: int | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._dirty: set[Digest] = set()

    # -- life ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open or create the directory, sweep what a killed process left, read the ledger.

        Raises `StoreTooNew`, or `StorageError` when the directory cannot be used or another process has it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock()
            staging = self._staging
            staging.mkdir(exist_ok=True, mode=0o700)
            index = Index(self.directory / "store")
            self._check_format(index)
            for leftover in staging.iterdir():
                leftover.unlink()
            index.sweep()
        except OSError as error:
            problem = f"store directory {self.directory} cannot be used: {error.strerror or error}"
            self._problems["directory"] = problem
            raise StorageError(problem) from error
        except StorageError as error:
            self._problems["directory"] = str(error)
            raise
        self._read_ledger(index)
        self._index = index
        self._problems.clear()

    @property
    def is_open(self) -> bool:
        """Whether the directory is open."""
        return self._index is not None

    @property
    def problem(self) -> str | None:
        """Why content cannot be stored at present, or None. It ends when the thing that failed works again."""
        return next(iter(self._problems.values()), None)

    def failed(self, error: StorageError) -> None:
        """Content could not be staged; holds until some content is committed."""
        self._problems["files"] = str(error)

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

    def _read_ledger(self, index: Index) -> None:
        ledger = Ledger()
        for key, _, size, filename in index.rows("blob/"):
            if filename is not None:
                ledger.add(Digest.parse(key.removeprefix("blob/")), size)
        for key, value, _, _ in index.rows("manifest/"):
            record = ManifestRecord.decode(value)
            ledger.add(Digest.parse(key.removeprefix("manifest/")), len(record.body), _children(record))
        for key, value, _, _ in index.rows("popularity/"):
            ledger.popularity[Digest.parse(key.removeprefix("popularity/"))] = Popularity.decode(value)
        self.ledger = ledger

    @property
    def _staging(self) -> Path:
        return self.directory / "staging"

    async def close(self) -> None:
        """Write what is pending and let another process have the directory."""
        if self._index is not None:
            await self.flush()
            await self._write(self._index.close)
            self._index.close()
            self._index = None
        self._writer.shutdown()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def _write[T](self, action: Callable[[], T]) -> T:
        """Run in the writer thread; the outcome decides whether the index counts as working."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._writer, action)
        except StorageError as error:
            self._problems["index"] = str(error)
            raise
        self._problems.pop("index", None)
        return result

    def _read(self, key: str) -> object:
        """One row, or None; a store that cannot be read knows nothing."""
        if self._index is None:
            return None
        try:
            return self._index.get(key)
        except StorageError as error:
            self._problems["index"] = str(error)
            return None

    def _opened(self) -> Index:
        if self._index is None:
            raise StorageError(self.problem or "store is closed")
        return self._index

    # -- content ------------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the content is stored, blob or manifest."""
        return digest in self.ledger.sizes

    def blob_size(self, digest: Digest) -> int | None:
        """Size of a stored blob; None when it is not stored (or is a manifest)."""
        return None if digest in self.ledger.children else self.ledger.sizes.get(digest)

    async def open_blob(self, digest: Digest) -> StoredBlob | None:
        """Open a stored blob. A file that is gone or has another size is dropped from the store, and None returned."""
        size = self.blob_size(digest)
        if size is None:
            return None
        path = self._read(f"blob/{digest}")
        try:
            fd = os.open(path, os.O_RDONLY) if isinstance(path, Path) else None
        except OSError:
            fd = None
        if fd is not None and os.fstat(fd).st_size == size:
            self.ledger.hold(digest)
            return StoredBlob(fd, size, lambda: self.ledger.release(digest))
        if fd is not None:
            os.close(fd)
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
        await self._reserve(size)
        try:
            await self._write(lambda: index.set(f"manifest/{digest}", record.encode()))
            self.ledger.add(digest, size, _children(record))
        finally:
            self.ledger.reserved -= size

    async def stage(self, digest: Digest, size: int) -> Staged:
        """Begin to store `size` bytes: makes room first, so that the cap holds while the file grows."""
        self._opened()
        await self._reserve(size)
        try:
            return Staged(self._staging / f"{digest.hex}.{secrets.token_hex(4)}", digest, size)
        except StorageError:
            self.ledger.reserved -= size
            raise

    async def extend(self, staged: Staged, total: int) -> None:
        """Reserve in steps for content whose size the upstream did not tell."""
        while staged.reserved < total:
            await self._reserve(_EXTENSION)
            staged.reserved += _EXTENSION

    async def commit(self, staged: Staged) -> None:
        """Move verified staged content into the store."""
        index = self._opened()
        await self._write(lambda: index.set(f"blob/{staged.digest}", staged.sync()))
        self.ledger.add(staged.digest, staged.written)
        self._problems.pop("files", None)

    def finish(self, staged: Staged) -> None:
        """End staging, committed or not: returns the reservation and removes an uncommitted file."""
        self.ledger.reserved -= staged.reserved
        staged.close()

    async def remove(self, digest: Digest) -> None:
        """Remove content, whatever it is."""
        index = self._opened()
        kind = "manifest" if digest in self.ledger.children else "blob"
        self.ledger.remove(digest)
        await self._write(lambda: index.delete(f"{kind}/{digest}"))

    async def _reserve(self, size: int) -> None:
        """Take `size` bytes of the capacity, evicting for it; raises `StorageError` when they cannot be had.

        The reservation comes before the eviction: another request that runs meanwhile must see it.
        """
        limit = self.capacity - self._opened().bytes - _INDEX_ALLOWANCE
        self.ledger.reserved += size
        try:
            if self.ledger.reserved > limit:
                raise StorageError(f"{size} bytes do not fit into the store's {self.capacity} bytes")
            victims = self.ledger.victims(self._clock()) if self.ledger.used > limit else iter(())
            while self.ledger.used > limit:
                victim = next(victims, None)
                if victim is None:
                    raise StorageError("the store is full of content that is in use")
                if self.has(victim):
                    await self.remove(victim)
                    self.evictions += 1
        except StorageError:
            self.ledger.reserved -= size
            raise

    # -- facts --------------------------------------------------------------------------------------------------

    def tags(self, registry: str, repository: str, tag: str) -> dict[str, TagRecord]:
        """What is remembered of a tag, by negotiation."""
        value = self._read(f"tag/{registry}/{repository}:{tag}")
        return decode_tags(value) if isinstance(value, str) else {}

    async def put_tag(self, registry: str, repository: str, tag: str, negotiation: str, record: TagRecord) -> None:
        """Remember what a tag answered."""
        index = self._opened()
        key = f"tag/{registry}/{repository}:{tag}"
        records = encode_tags(self.tags(registry, repository, tag) | {negotiation: record})
        await self._write(lambda: index.set(key, records, FACT_LIFETIME))

    async def drop_tag(self, registry: str, repository: str, tag: str) -> None:
        """Forget a tag (it was moved or removed)."""
        index = self._opened()
        await self._write(lambda: index.delete(f"tag/{registry}/{repository}:{tag}"))

    def link(self, registry: str, repository: str, digest: Digest) -> Link | None:
        """Whether a digest is known to belong to a repository."""
        value = self._read(f"link/{registry}/{repository}@{digest}")
        return Link.decode(value) if isinstance(value, str) else None

    async def put_links(self, registry: str, repository: str, links: dict[Digest, int | None]) -> None:
        """Remember that digests (with their sizes where known) belong to a repository."""
        index = self._opened()
        rows: dict[str, object] = {
            f"link/{registry}/{repository}@{digest}": Link(size).encode() for digest, size in links.items()
        }
        await self._write(lambda: index.set_many(rows, FACT_LIFETIME))

    def verdict(self, registry: str, repository: str) -> Verdict | None:
        """Whether a repository was public when last seen."""
        value = self._read(f"repository/{registry}/{repository}")
        return Verdict.decode(value) if isinstance(value, str) else None

    async def put_verdict(self, registry: str, repository: str, verdict: Verdict) -> None:
        """Remember whether a repository is public."""
        index = self._opened()
        await self._write(lambda: index.set(f"repository/{registry}/{repository}", verdict.encode(), FACT_LIFETIME))

    def challenge(self, registry: str) -> str | None:
        """The registry's last seen authentication challenge."""
        value = self._read(f"challenge/{registry}")
        return value if isinstance(value, str) else None

    async def put_challenge(self, registry: str, challenge: str) -> None:
        """Remember a registry's authentication challenge."""
        index = self._opened()
        if self.challenge(registry) != challenge:
            await self._write(lambda: index.set(f"challenge/{registry}", challenge))

    # -- popularity ---------------------------------------------------------------------------------------------

    def count_request(self, digest: Digest, now: float) -> None:
        """Somebody asked for this manifest; written behind by `flush`, so that a hit costs no write."""
        self.ledger.popularity[digest] = requested(self.ledger.popularity.get(digest), now)
        self._dirty.add(digest)

    def was_requested(self, digest: Digest) -> bool:
        """Whether anybody asked for this manifest, as far as that is remembered."""
        return digest in self.ledger.popularity

    async def flush(self) -> None:
        """Write the popularity counted since the last flush."""
        index, dirty = self._opened(), self._dirty
        self._dirty = set()
        rows: dict[str, object] = {f"popularity/{d}": self.ledger.popularity[d].encode() for d in dirty}
        if rows:
            await self._write(lambda: index.set_many(rows, FACT_LIFETIME))

    async def forget_expired(self) -> None:
        """Remove the facts whose lifetime is over."""
        await self._write(self._opened().forget_expired)


def _children(record: ManifestRecord) -> tuple[Digest, ...]:
    return tuple(descriptor.digest for descriptor in parse_manifest(record.body))
