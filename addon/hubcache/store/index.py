"""The index of the store: rows in a diskcache `Cache` with this project's settings, its errors translated.

Retention is this project's own: diskcache's policies reject new content or never age, so they are off.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import closing
from itertools import batched, chain
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_BINARY, MODE_RAW

from ..oci.errors import StorageError, StoreDamaged
from .disk import BLOBS, FileDisk, StagedFile

_DATABASE = "cache.db"
_BUSY_SECONDS = 5.0
_UNBOUNDED = 1 << 62

_BATCH = 128
"""Most rows that `write_batches` writes in one transaction: SQLite's log grows by a page or two for each row, and its
size counts towards the cap."""


class Index:
    """Typed access to the rows; every method raises `StorageError` when the database fails."""

    def __init__(self, directory: Path) -> None:
        """Open or create the database; one that SQLite reports as damaged is renamed, and a new one created."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        self.damaged_database = None if self._is_sound() else self._rename_damaged()
        """The path of the damaged database that was renamed on opening, if there was one."""
        try:
            self._cache = diskcache.Cache(
                str(directory),
                disk=FileDisk,
                timeout=_BUSY_SECONDS,
                eviction_policy="none",
                cull_limit=0,
                size_limit=_UNBOUNDED,
                statistics=0,
                sqlite_journal_size_limit=16 << 20,
                sqlite_wal_autocheckpoint=256,  # pages; small because the log counts towards the cap (`ALLOWANCE`)
            )
            self._file = self._identity()
        except (sqlite3.Error, diskcache.Timeout) as error:
            raise StorageError(f"cannot open the store's index: {error}") from error

    def _identity(self) -> tuple[int, int] | None:
        try:
            state = (self._directory / _DATABASE).stat()
        except FileNotFoundError:
            return None
        return state.st_dev, state.st_ino

    @property
    def is_in_place(self) -> bool:
        """Whether the database is still the file that was opened: SQLite keeps writing to a file that was deleted."""
        return self._identity() == self._file

    @property
    def has_blobs(self) -> bool:
        """Whether the folder of blobs exists; it is removed with the last blob."""
        return (self._directory / BLOBS).is_dir()

    def _is_sound(self) -> bool:
        """Whether the database is undamaged by SQLite's quick check (which reads all of it: 100 MB in 0.2 s)."""
        if not (self._directory / _DATABASE).exists():
            return True
        try:
            with closing(sqlite3.connect(self._directory / _DATABASE, timeout=_BUSY_SECONDS)) as connection:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot open the store's index: {error}") from error
        except sqlite3.DatabaseError:
            return False

    def _rename_damaged(self) -> Path:
        """Rename the database (not the blobs: `sweep` removes those without a row). Only the last one is kept."""
        for earlier in self._directory.glob(f"{_DATABASE}.damaged-*"):
            earlier.unlink()
        target = self._directory / f"{_DATABASE}.damaged-{int(time.time())}"
        (self._directory / _DATABASE).rename(target)
        for suffix in ("-wal", "-shm"):
            (self._directory / f"{_DATABASE}{suffix}").unlink(missing_ok=True)
        return target

    def get(self, key: str) -> Any:
        """Return the value (text, bytes or the `Path` of a file), or None."""
        return self._translate(lambda: self._cache.get(key))

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the text values of these keys, with a single query."""
        return dict(
            self._query(
                "SELECT key, value FROM Cache WHERE key IN (SELECT value FROM json_each(?))"
                " AND (expire_time IS NULL OR expire_time > ?) AND mode = ?",
                *(json.dumps(list(keys)), time.time(), MODE_RAW),
            )
        )

    def set(self, key: str, value: object, lifetime: float | None = None) -> None:
        """Write one row; it expires after `lifetime` seconds."""
        try:
            self._translate(lambda: self._cache.set(key, value, expire=lifetime))
        except StorageError:
            if isinstance(value, StagedFile):
                self.sweep()  # the file was linked before the failed write of its row, and must be counted or removed
            raise

    def update(self, key: str, change: Callable[[Any], object], lifetime: float | None = None) -> None:
        """Replace one row by `change(value)`, in one transaction; the value is None when there is no row."""

        def write() -> None:
            with self._cache.transact():
                self._cache.set(key, change(self._cache.get(key)), expire=lifetime)

        self._translate(write)

    def set_many(self, rows: dict[str, object], lifetime: float | None = None, deleted: Iterable[str] = ()) -> None:
        """Write rows, and delete the rows with the keys `deleted`, in one transaction."""

        def write() -> None:
            with self._cache.transact():
                for key, value in rows.items():
                    self._cache.set(key, value, expire=lifetime)
                for key in deleted:
                    self._cache.delete(key)

        self._translate(write)

    def write_batches(
        self, rows: dict[str, object], lifetime: float | None = None, deleted: Iterable[str] = ()
    ) -> None:
        """Write and delete any number of rows, in transactions of limited size."""
        for written in batched(rows.items(), _BATCH):
            self.set_many(dict(written), lifetime)
        for keys in batched(deleted, _BATCH):
            self.set_many({}, deleted=keys)

    def expiring(self, within: float) -> list[tuple[str, Any]]:
        """Return (key, value) of the rows that expire within this many seconds."""
        return list(self._query("SELECT key, value FROM Cache WHERE expire_time < ?", time.time() + within))

    def extend_lifetime(self, keys: Iterable[str], lifetime: float) -> None:
        """Let rows that have not expired expire `lifetime` seconds from now, in one transaction."""

        def write() -> None:
            with self._cache.transact():
                for key in keys:
                    self._cache.touch(key, expire=lifetime)

        self._translate(write)

    def delete(self, *keys: str) -> None:
        """Delete rows and their files, if any, each in a separate transaction: within a larger transaction, diskcache
        removes the file before the commit, and a process that dies in between leaves a row without its file."""
        for key in keys:
            self._translate(lambda key=key: self._cache.delete(key))  # type: ignore[misc]

    def checkpoint(self) -> None:
        """Write the log to the database, so that committed rows survive a power loss, which may otherwise undo the last
        of them."""
        list(self._query("PRAGMA wal_checkpoint"))

    def forget_expired(self) -> None:
        """Delete the rows that have expired."""
        self._translate(self._cache.expire)

    def rows(self, prefix: str) -> Iterator[tuple[str, Any, int, str | None]]:
        """Return (key, value, size of file, file name) of all rows whose key starts with `prefix`.

        This is a single SELECT: diskcache's iteration makes two queries for each row, which takes ten seconds at a
        start with 100,000 blobs. The column names are those of diskcache's documented table. Without a prefix the
        table is read in its own order, which takes half as long as reading it in the order of keys.
        """
        return self._query(
            f"SELECT key, value, size, filename FROM Cache {'' if prefix else 'NOT INDEXED'}"
            " WHERE key >= ? AND key < ? AND mode IN (?, ?)",
            *(prefix, prefix + "\U0010ffff", MODE_RAW, MODE_BINARY),
        )

    def _query(self, query: str, *parameters: object) -> Iterator[Any]:
        """Return the rows of a query, made with a separate connection, not the writer's."""
        try:
            with closing(sqlite3.connect(self._directory / _DATABASE, timeout=_BUSY_SECONDS)) as connection:
                yield from connection.execute(query, parameters)
        except sqlite3.Error as error:
            raise StorageError(f"cannot read the store's index: {error}") from error

    def sweep(self) -> int:
        """Remove files without a row (a process died between link and row); return how many."""
        known = {name for (name,) in self._query("SELECT filename FROM Cache WHERE filename IS NOT NULL")}
        removed = 0
        for names in self._files():
            orphans = names - known
            self._unlink(orphans)
            removed += len(orphans)
        return removed

    def reconcile(self) -> list[tuple[str, str]]:
        """Remove files without a row, and rows whose file is missing (it was deleted, or lost in a power cut); return
        (key, file name) of the other rows."""
        rows = list(self._query("SELECT key, filename FROM Cache WHERE filename IS NOT NULL"))
        files = set(chain.from_iterable(self._files()))
        lost = {key for key, name in rows if name not in files}
        files.difference_update(name for _, name in rows)
        self._unlink(files)
        self.write_batches({}, deleted=lost)
        return [row for row in rows if row[0] not in lost]

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            (self._directory / name).unlink(missing_ok=True)

    def _files(self) -> Iterator[Set[str]]:
        """Return the files of each folder, named as in the rows."""
        for folder in (self._directory / BLOBS).glob("*"):
            with os.scandir(folder) as entries:  # a `Path` for each of 100,000 files would take three seconds
                names = {f"{BLOBS}/{folder.name}/{entry.name}" for entry in entries}
            yield names

    @property
    def bytes(self) -> int:
        """Bytes on disk of the database's own files, a damaged one that was renamed included."""
        total = 0
        for path in self._directory.glob(f"{_DATABASE}*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    def close(self) -> None:
        """Close the connection of the calling thread."""
        self._cache.close()

    @staticmethod
    def _translate[T](action: Callable[[], T]) -> T:
        try:
            return action()
        except diskcache.Timeout as error:
            raise StorageError("the store's index is locked by another process") from error
        except sqlite3.OperationalError as error:
            raise StorageError(f"the store's index failed: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreDamaged(f"the store's index is damaged: {error}") from error
        except OSError as error:
            raise StorageError(f"the store's index failed: {error}") from error
