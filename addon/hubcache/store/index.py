"""The rows of the store: a diskcache `Cache` opened the one way that is right here, its errors translated.

Retention is this project's own: diskcache's policies reject newcomers or never age, so they are off.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_BINARY, MODE_RAW

from ..oci.errors import StorageError, StoreDamaged
from .disk import BLOBS, FileDisk, StagedFile

_DATABASE = "cache.db"
_BUSY_SECONDS = 5.0
_UNBOUNDED = 1 << 62

BATCH = 128
"""Rows written in one transaction where there may be any number: the log grows by a page or two for each, and what it
has grown to counts towards the cap."""


class Index:
    """Typed access to the rows; every method raises `StorageError` when the database cannot do its part."""

    def __init__(self, directory: Path) -> None:
        """Open or create; a database that SQLite finds damaged is put aside, and a new one begun."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        self.put_aside = None if self._is_sound() else self._set_aside()
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
                sqlite_wal_autocheckpoint=256,  # pages: the log counts towards the cap, see `room.ALLOWANCE`
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
        """Whether the database is still the file that was opened: SQLite goes on writing to one that was deleted."""
        return self._identity() == self._file

    @property
    def has_blobs(self) -> bool:
        """Whether there is a folder of blobs; an empty one is removed with the last of them."""
        return (self._directory / BLOBS).is_dir()

    def _is_sound(self) -> bool:
        """Whether the database is one, as far as SQLite's quick check sees (it reads all of it: 100 MB in 0.2 s)."""
        if not (self._directory / _DATABASE).exists():
            return True
        try:
            with closing(sqlite3.connect(self._directory / _DATABASE, timeout=_BUSY_SECONDS)) as connection:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot open the store's index: {error}") from error
        except sqlite3.DatabaseError:
            return False

    def _set_aside(self) -> Path:
        """Rename the database (not the files: the sweep takes those that no row names). Only the last one is kept."""
        for earlier in self._directory.glob(f"{_DATABASE}.damaged-*"):
            earlier.unlink()
        target = self._directory / f"{_DATABASE}.damaged-{int(time.time())}"
        (self._directory / _DATABASE).rename(target)
        for suffix in ("-wal", "-shm"):
            (self._directory / f"{_DATABASE}{suffix}").unlink(missing_ok=True)
        return target

    def get(self, key: str) -> Any:
        """The value (text, bytes or a `Path`) or None."""
        return self._translate(lambda: self._cache.get(key))

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of text that these keys have, by one query."""
        return dict(
            self._query(
                "SELECT key, value FROM Cache WHERE key IN (SELECT value FROM json_each(?))"
                " AND (expire_time IS NULL OR expire_time > ?) AND mode = ?",
                *(json.dumps(list(keys)), time.time(), MODE_RAW),
            )
        )

    def set(self, key: str, value: object, lifetime: float | None = None) -> None:
        """Write one row; it is forgotten after `lifetime` seconds."""
        try:
            self._translate(lambda: self._cache.set(key, value, expire=lifetime))
        except StorageError:
            if isinstance(value, StagedFile):
                self.sweep()  # the file was there before its row failed, and must not stay behind unaccounted
            raise

    def update(self, key: str, change: Callable[[Any], object], lifetime: float | None = None) -> None:
        """Replace one row by what `change` makes of it (of None, if there is none), in one transaction."""

        def write() -> None:
            with self._cache.transact():
                self._cache.set(key, change(self._cache.get(key)), expire=lifetime)

        self._translate(write)

    def set_many(self, rows: dict[str, object], lifetime: float | None = None, gone: Iterable[str] = ()) -> None:
        """Write rows, and delete those that are `gone`, in one transaction."""

        def write() -> None:
            with self._cache.transact():
                for key, value in rows.items():
                    self._cache.set(key, value, expire=lifetime)
                for key in gone:
                    self._cache.delete(key)

        self._translate(write)

    def ending(self, within: float) -> list[tuple[str, Any]]:
        """(key, value) of the rows whose lifetime ends within so many seconds."""
        return list(self._query("SELECT key, value FROM Cache WHERE expire_time < ?", time.time() + within))

    def prolong(self, keys: Iterable[str], lifetime: float) -> None:
        """Let rows whose lifetime is not over live for so many seconds from now, in one transaction."""

        def write() -> None:
            with self._cache.transact():
                for key in keys:
                    self._cache.touch(key, expire=lifetime)

        self._translate(write)

    def delete(self, *keys: str) -> None:
        """Remove rows and their files, if there, each in a transaction of its own: within another, diskcache removes
        the file before that is committed, and a process that dies in between leaves a row without its file."""
        for key in keys:
            self._translate(lambda key=key: self._cache.delete(key))  # type: ignore[misc]

    def settle(self) -> None:
        """Make sure that a power cut does not undo what was written; it may else undo the last of it."""
        list(self._query("PRAGMA wal_checkpoint"))

    def forget_expired(self) -> None:
        """Remove the rows whose lifetime is over."""
        self._translate(self._cache.expire)

    def rows(self, prefix: str) -> Iterator[tuple[str, Any, int, str | None]]:
        """All (key, value, size of file, file name) whose key starts with `prefix`.

        One SELECT of our own: diskcache's iteration is two queries for each row, which makes a start with 100,000
        blobs take ten seconds. The column names are those of diskcache's documented table. Without a prefix the
        table is read in its own order, which takes half the time that the order of keys does.
        """
        return self._query(
            f"SELECT key, value, size, filename FROM Cache {'' if prefix else 'NOT INDEXED'}"
            " WHERE key >= ? AND key < ? AND mode IN (?, ?)",
            *(prefix, prefix + "\U0010ffff", MODE_RAW, MODE_BINARY),
        )

    def _query(self, query: str, *parameters: object) -> Iterator[Any]:
        """Rows of a query of our own, beside the one writer's connection."""
        try:
            with closing(sqlite3.connect(self._directory / _DATABASE, timeout=_BUSY_SECONDS)) as connection:
                yield from connection.execute(query, parameters)
        except sqlite3.Error as error:
            raise StorageError(f"cannot read the store's index: {error}") from error

    def sweep(self) -> int:
        """Remove files that no row names (a process died between link and row); returns how many."""
        known = {name for (name,) in self._query("SELECT filename FROM Cache WHERE filename IS NOT NULL")}
        removed = 0
        for names in self._files():
            strays = names - known
            self._unlink(strays)
            removed += len(strays)
        return removed

    def reconcile(self) -> list[tuple[str, str]]:
        """Remove files that no row names, and rows whose file is gone (a power cut took its name, somebody deleted
        it); returns (key, file name) of the rest."""
        rows = list(self._query("SELECT key, filename FROM Cache WHERE filename IS NOT NULL"))
        files = set(chain.from_iterable(self._files()))
        lost = [key for key, name in rows if name not in files]
        files.difference_update(name for _, name in rows)
        self._unlink(files)
        for start in range(0, len(lost), BATCH):
            self.set_many({}, gone=lost[start : start + BATCH])
        gone = frozenset(lost)
        return [row for row in rows if row[0] not in gone]

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            (self._directory / name).unlink(missing_ok=True)

    def _files(self) -> Iterator[Set[str]]:
        """The files of all folders, named as in the rows."""
        for folder in (self._directory / BLOBS).glob("*"):
            with os.scandir(folder) as entries:  # a `Path` for each of 100,000 files would take three seconds
                names = {f"{BLOBS}/{folder.name}/{entry.name}" for entry in entries}
            yield names

    @property
    def bytes(self) -> int:
        """Bytes of the database's own files on disk, of one that was put aside too."""
        total = 0
        for path in self._directory.glob(f"{_DATABASE}*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    def close(self) -> None:
        """Close this thread's connection."""
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
