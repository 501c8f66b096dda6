"""The index raises `StorageError`, replaces a damaged database, and removes files without a row."""

import gc
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.store import index as index_module
from hubcache.store.disk import StagedFile
from hubcache.store.index import Index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path / "store")
    yield opened
    opened.close()


def file_of(folder: Path, data: bytes) -> StagedFile:
    path = folder / "staged"
    path.write_bytes(data)
    return StagedFile(path, Digest.of(data), len(data))


def test_rows_survive_a_restart(tmp_path: Path) -> None:
    first = Index(tmp_path)
    first.set("a", "text")
    first.set_many({"b": b"bytes", "blob/x": file_of(tmp_path, b"layer")})
    first.close()
    second = Index(tmp_path)
    assert (second.get("a"), second.get("b"), second.get("blob/x").read_bytes()) == ("text", b"bytes", b"layer")
    assert second.get("c") is None
    second.close()


def test_row_expires_after_its_lifetime(index: Index) -> None:
    index.set("brief", "x", -1.0)
    index.set_many({"brief too": "x"}, -1.0)
    index.set("long", "x", 1000.0)
    index.set("ever", "x")
    assert [index.get(key) for key in ("brief", "brief too", "long", "ever")] == [None, None, "x", "x"]
    index.forget_expired()
    assert sorted(key for key, *_ in index.rows("")) == ["ever", "long"]


def test_rows_returns_exactly_the_rows_with_the_prefix(index: Index, tmp_path: Path) -> None:
    for key in ("blob", "blob/", "blob/a", "blob/\N{MUSICAL SYMBOL G CLEF}", "blob0", "blo/x", "blobs/x"):
        index.set(key, "x")
    file = file_of(tmp_path, b"layer")
    index.set("blob/file", file)
    rows = {key: (value, size, name) for key, value, size, name in index.rows("blob/")}
    assert sorted(rows) == ["blob/", "blob/a", "blob/file", "blob/\N{MUSICAL SYMBOL G CLEF}"]
    assert rows["blob/a"] == ("x", 0, None)
    value, size, name = rows["blob/file"]
    assert (value, size) == (None, 5)
    assert (tmp_path / "store" / str(name)).read_bytes() == b"layer"


def test_rows_of_set_many_are_written_together_or_not_at_all(index: Index) -> None:
    with pytest.raises(TypeError):
        index.set_many({"a": "x", "b": object()})
    assert index.get("a") is None


def test_directory_and_its_folders_are_accessible_to_the_owner_only(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o755)
    old = os.umask(0o022)
    try:
        index = Index(tmp_path / "store")
        index.set("blob/x", file_of(tmp_path, b"layer"))
        folder = index.get("blob/x").parent
        index.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_sweep_removes_only_files_without_a_row(index: Index, tmp_path: Path) -> None:
    index.set("blob/x", file_of(tmp_path, b"layer"))
    kept = index.get("blob/x")
    orphans = [kept.with_name(kept.name + "0"), tmp_path / "store/blobs/zz/orphan"]
    for orphan in orphans:
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"left")
    assert index.sweep() == 2
    assert kept.exists()
    assert not any(orphan.exists() for orphan in orphans)
    assert index.sweep() == 0


@pytest.mark.parametrize("damage", [b"not a database at all" * 500, b"SQLite format 3\0" + b"\xff" * 8000])
def test_damaged_database_is_renamed_and_a_new_one_created(tmp_path: Path, damage: bytes) -> None:
    first = Index(tmp_path)
    first.set("a", "x")
    first.close()
    (tmp_path / "cache.db").write_bytes(damage)
    second = Index(tmp_path)
    assert second.damaged_database is not None
    assert second.damaged_database.read_bytes() == damage
    assert second.get("a") is None
    second.set("a", "y")
    assert second.get("a") == "y"
    second.close()
    gc.collect()


def test_undamaged_database_is_not_renamed(index: Index) -> None:
    assert index.damaged_database is None


def test_file_in_place_of_the_directory_raises_os_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(OSError, match="exists"):
        Index(tmp_path / "store")


def test_directory_in_place_of_the_database_raises_storage_error(tmp_path: Path) -> None:
    (tmp_path / "cache.db").mkdir()
    with pytest.raises(StorageError):
        Index(tmp_path)


def test_database_locked_by_another_connection_raises_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_BUSY_SECONDS", 0.05)
    index = Index(tmp_path)
    index.set("a", "x")
    other = sqlite3.connect(tmp_path / "cache.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError):
        index.set("a", "y")
    with pytest.raises(StorageError):
        index.delete("a")
    with pytest.raises(StorageError):
        index.set_many({"a": "y"})
    assert index.get("a") == "x"
    other.rollback()
    other.close()
    index.set("a", "y")
    assert index.get("a") == "y"
    index.close()


def refuse(directory: Path, event: str) -> None:
    """Make the database fail within a transaction, as on a full disk."""
    connection = sqlite3.connect(directory / "cache.db")
    connection.execute(f"CREATE TRIGGER refuse BEFORE {event} ON Cache BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    connection.commit()
    connection.close()


def test_failed_write_raises_storage_error(tmp_path: Path) -> None:
    index = Index(tmp_path)
    refuse(tmp_path, "INSERT")
    with pytest.raises(StorageError, match="disk is full"):
        index.set("a", "x")
    assert index.get("a") is None
    index.close()


def test_failed_write_of_a_row_leaves_no_file(tmp_path: Path) -> None:
    index = Index(tmp_path)
    refuse(tmp_path, "INSERT")
    file = file_of(tmp_path, b"layer")
    with pytest.raises(StorageError):
        index.set("blob/x", file)
    index.close()
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_size_of_the_index_includes_its_log(index: Index) -> None:
    before = index.bytes
    index.set("a", b"x" * 300_000)
    assert index.bytes >= before + 300_000
