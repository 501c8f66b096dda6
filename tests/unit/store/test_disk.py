"""The `Disk` subclass links files, stores text and bytes in rows, and loads no pickle."""

import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import diskcache
import pytest
from diskcache.core import MODE_PICKLE, MODE_TEXT
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.store.disk import FileDisk, StagedFile


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[diskcache.Cache]:
    opened = diskcache.Cache(str(tmp_path / "cache"), disk=FileDisk, eviction_policy="none", cull_limit=0)
    yield opened
    opened.close()


def staged(folder: Path, data: bytes) -> StagedFile:
    path = folder / f"staged{len(list(folder.iterdir()))}"
    path.write_bytes(data)
    return StagedFile(path, Digest.of(data), len(data))


def overwrite(cache: diskcache.Cache, mode: int, value: object, filename: str | None = None) -> None:
    """Change the row of key `k` with another connection."""
    connection = sqlite3.connect(Path(cache.directory, "cache.db"))
    connection.execute("UPDATE Cache SET mode = ?, value = ?, filename = ?", (mode, value, filename))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("value", ["", "text", "x" * 200_000, b"", b"bytes\0", b"x" * 200_000])
def test_text_and_bytes_of_any_size_are_stored_in_the_row(cache: diskcache.Cache, value: str | bytes) -> None:
    cache.set("k", value)
    assert cache.get("k") == value
    assert [path.name for path in Path(cache.directory).iterdir() if path.is_dir()] == []


def test_staged_file_is_linked_not_copied(cache: diskcache.Cache, tmp_path: Path) -> None:
    file = staged(tmp_path, b"layer")
    cache.set("k", file)
    assert cache.get("k").read_bytes() == b"layer"
    assert cache.get("k").samefile(file.path)


def test_staged_file_is_moved_where_links_are_not_supported(
    cache: diskcache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    file = staged(tmp_path, b"layer")
    cache.set("k", file)
    assert cache.get("k").read_bytes() == b"layer"
    assert not file.path.exists()


def test_second_commit_of_a_digest_replaces_the_file(cache: diskcache.Cache, tmp_path: Path) -> None:
    cache.set("k", staged(tmp_path, b"layer"))
    first = cache.get("k")
    cache.set("k", staged(tmp_path, b"layer"))
    second = cache.get("k")
    assert second.read_bytes() == b"layer"
    assert not first.exists()


def test_deleted_row_deletes_its_file(cache: diskcache.Cache, tmp_path: Path) -> None:
    cache.set("k", staged(tmp_path, b"layer"))
    path = cache.get("k")
    cache.delete("k")
    assert not path.exists()


@pytest.mark.parametrize("value", [1, 1.5, None, ["list"], {"a": 1}, object(), bytearray(b"x")])
def test_values_that_would_need_pickle_are_refused(cache: diskcache.Cache, value: object) -> None:
    with pytest.raises(TypeError):
        cache.set("k", value)
    assert cache.get("k") is None


@pytest.mark.parametrize("key", [1, b"k", ("k",), None])
def test_keys_that_are_not_text_are_refused(cache: diskcache.Cache, key: object) -> None:
    with pytest.raises(TypeError):
        cache.set(key, "value")


def malicious_pickle(target: Path) -> bytes:
    """Return a pickle that creates a directory when loaded, as an attacker who can write to the store may leave."""
    return b"cos\nmkdir\n(V" + str(target).encode() + b"\ntR."


def test_pickle_of_these_tests_takes_effect_when_it_is_loaded(tmp_path: Path) -> None:
    diskcache.Disk(str(tmp_path)).fetch(MODE_PICKLE, None, malicious_pickle(tmp_path / "created"), False)
    assert (tmp_path / "created").exists()


def test_row_with_a_pickle_is_refused_without_loading_it(cache: diskcache.Cache, tmp_path: Path) -> None:
    cache.set("k", "value")
    overwrite(cache, MODE_PICKLE, malicious_pickle(tmp_path / "created"))
    with pytest.raises(StorageError):
        cache.get("k")
    assert not (tmp_path / "created").exists()


def test_file_with_a_pickle_is_refused_without_loading_it(cache: diskcache.Cache, tmp_path: Path) -> None:
    cache.set("k", "value")
    Path(cache.directory, "evil.val").write_bytes(malicious_pickle(tmp_path / "created"))
    overwrite(cache, MODE_PICKLE, None, "evil.val")
    with pytest.raises(StorageError):
        cache.get("k")
    assert not (tmp_path / "created").exists()


def test_row_with_a_pickled_key_is_refused_without_loading_it(cache: diskcache.Cache, tmp_path: Path) -> None:
    cache.set("k", "value")
    connection = sqlite3.connect(Path(cache.directory, "cache.db"))
    connection.execute("UPDATE Cache SET key = ?, raw = 0", (malicious_pickle(tmp_path / "created"),))
    connection.commit()
    connection.close()
    with pytest.raises(StorageError):
        list(cache)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("mode", "value", "filename"), [(MODE_TEXT, None, "x"), (1, 7, None), (1, 1.5, None), (2, None, None)]
)
def test_rows_that_this_program_never_writes_are_refused(
    cache: diskcache.Cache, mode: int, value: object, filename: str | None
) -> None:
    cache.set("k", "value")
    overwrite(cache, mode, value, filename)
    with pytest.raises(StorageError):
        cache.get("k")
