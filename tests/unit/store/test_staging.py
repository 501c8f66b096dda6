"""A staged file grows with each write, and is removed unless it was committed."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.store.staging import Staged
from hypothesis import given
from hypothesis import strategies as st

DIGEST = Digest.of(b"layer")


def test_written_bytes_can_be_read_at_once(tmp_path: Path) -> None:
    staged = Staged(tmp_path / "f", DIGEST, 5)
    staged.write(b"lay")
    reader = os.dup(staged.fd)
    assert (staged.written, os.pread(reader, 10, 0)) == (3, b"lay")
    staged.write(b"er")
    assert (staged.written, os.pread(reader, 10, 1)) == (5, b"ayer")
    os.close(reader)
    staged.close()


def test_uncommitted_file_is_removed_and_stays_readable_for_its_readers(tmp_path: Path) -> None:
    staged = Staged(tmp_path / "f", DIGEST, 5)
    staged.write(b"layer")
    reader = os.dup(staged.fd)
    staged.close()
    assert not (tmp_path / "f").exists()
    assert os.pread(reader, 5, 0) == b"layer"
    os.close(reader)


@pytest.mark.parametrize("commit", [Path.replace, lambda path, target: target.hardlink_to(path)])
def test_close_keeps_a_committed_file(tmp_path: Path, commit: Callable[[Path, Path], object]) -> None:
    staged = Staged(tmp_path / "f", DIGEST, 5)
    staged.write(b"layer")
    file = staged.sync()
    assert (file.path, file.digest, file.size) == (tmp_path / "f", DIGEST, 5)
    commit(file.path, tmp_path / "kept")
    staged.close()
    assert (tmp_path / "kept").read_bytes() == b"layer"
    assert not file.path.exists()


def test_staged_file_is_accessible_to_the_owner_only(tmp_path: Path) -> None:
    staged = Staged(tmp_path / "f", DIGEST, 5)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    staged.close()


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"another's")
    with pytest.raises(StorageError):
        Staged(tmp_path / "f", DIGEST, 5)
    assert (tmp_path / "f").read_bytes() == b"another's"


def test_missing_folder_raises_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot stage"):
        Staged(tmp_path / "gone" / "f", DIGEST, 5)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_failing_disk_raises_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    staged = Staged(tmp_path / "f", DIGEST, 5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        patch.setattr(os, "fdatasync", refuse)
        with pytest.raises(StorageError, match="cannot write"):
            staged.write(b"layer")
        with pytest.raises(StorageError, match="cannot sync"):
            staged.sync()
    assert staged.written == 0
    staged.close()
    assert not (tmp_path / "f").exists()


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 7))
def test_partial_writes_are_continued(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], most: int) -> None:
    true_write = os.pwrite
    staged = Staged(tmp_path_factory.mktemp("staging") / "f", DIGEST, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, at: true_write(fd, data[:most], at))
        for part in parts:
            staged.write(part)
    assert staged.path.read_bytes() == b"".join(parts)
    assert staged.written == sum(map(len, parts))
    staged.close()
