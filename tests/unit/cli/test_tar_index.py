"""The index of a tar archive: the same files as `tarfile` finds, and an error for everything that no layout has."""

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hubcache.cli import tar_index
from hubcache.cli.tar_index import ArchiveError, Entry, index_tar
from hypothesis import given
from hypothesis import strategies as st
from support.layouts import special, tar_of

FORMATS = pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
FILES = st.dictionaries(
    st.from_regex(r"[a-zé]{1,150}(/[a-z]{1,90}){0,2}", fullmatch=True), st.binary(max_size=1200), max_size=5
)


def index(data: bytes, path: Path) -> dict[str, bytes]:
    """Return the content of the files that are found in an archive."""
    path.write_bytes(data)
    with path.open("rb") as file:
        return {name: data[entry.offset : entry.offset + entry.size] for name, entry in index_tar(file).items()}


def fails(data: bytes, path: Path) -> str:
    with pytest.raises(ArchiveError) as caught:
        index(data, path)
    return str(caught.value)


@FORMATS
def test_files_are_found_in_every_format(kind: int, tmp_path: Path) -> None:
    long = "/".join(["folder" * 8] * 4)
    files = {"./index.json": b"{}", "blobs/sha256/aa": b"x" * 513, "empty": b""}
    files |= {} if kind == tarfile.USTAR_FORMAT else {f"{long}/name": b"long"}
    data = tar_of([special("blobs/", tarfile.DIRTYPE), *files.items()], kind)
    assert index(data, tmp_path / "a") == {name.removeprefix("./"): content for name, content in files.items()}


@given(FILES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_files_are_those_that_tarfile_finds(files: dict[str, bytes], kind: int) -> None:
    data = tar_of(files.items(), kind)
    with io.FileIO(_memory(data), "rb") as raw, io.BufferedReader(raw) as file:
        found = index_tar(file)
    assert {name: data[each.offset : each.offset + each.size] for name, each in found.items()} == files


def test_size_beyond_octal_digits_is_read(tmp_path: Path) -> None:
    """GNU writes sizes from 8 GiB in binary, pax in an extended header; such a file is sparse here."""
    size = 9 << 30
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        entry = tarfile.TarInfo("large")
        entry.size = size
        header = entry.tobuf(kind)
        path = tmp_path / "large.tar"
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + size + 1024)
        with path.open("rb") as opened:
            assert index_tar(opened) == {"large": Entry(len(header), size)}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (special("a", tarfile.SYMTYPE, "/etc/passwd"), "'a' is a symbolic link"),
        (special("a", tarfile.LNKTYPE, "b"), "'a' is a hard link"),
        (special("a", tarfile.CHRTYPE), "'a' is a device"),
        (special("a", tarfile.BLKTYPE), "'a' is a device"),
        (special("a", tarfile.FIFOTYPE), "'a' is a pipe"),
        (special("a", tarfile.GNUTYPE_SPARSE), "'a' is a sparse file"),
        (special("a", b"Z"), "'a' is of an unknown kind"),
        (special("../a", tarfile.REGTYPE), "outside of the archive"),
        (special("b/../../a", tarfile.REGTYPE), "outside of the archive"),
        (special("/etc/a", tarfile.REGTYPE), "outside of the archive"),
        (special("a\nb", tarfile.REGTYPE), "outside of the archive or malformed"),
        (special("../d", tarfile.DIRTYPE), "outside of the archive"),
    ],
)
@FORMATS
def test_entry_that_no_layout_has_is_an_error(kind: int, entry: tarfile.TarInfo, message: str, tmp_path: Path) -> None:
    assert message in fails(tar_of([entry], kind), tmp_path / "a")


def test_sparse_file_of_pax_is_an_error(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("a")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "1000000000000"}
    assert "sparse file" in fails(tar_of([entry]), tmp_path / "a")


def test_two_files_of_one_name_are_an_error(tmp_path: Path) -> None:
    assert "it has 'a' twice" in fails(tar_of([("a", b"1"), ("./a", b"2")]), tmp_path / "a")


def test_number_of_entries_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "MAX_ENTRIES", 10)
    files = [(f"f{n}", b"") for n in range(11)]
    assert len(index(tar_of(files[:10]), tmp_path / "a")) == 10
    assert "more than 10 entries" in fails(tar_of(files), tmp_path / "a")
    folders = [special(f"d{n}", tarfile.DIRTYPE) for n in range(11)]
    assert "more than 10 entries" in fails(tar_of(folders), tmp_path / "a")


def test_large_extended_header_is_not_read(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("a")
    entry.pax_headers = {"comment": "x" * 70_000}
    assert "an extended header has 7" in fails(tar_of([entry]), tmp_path / "a")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_malformed_size_is_an_error(kind: bytes, tmp_path: Path) -> None:
    """Of an extended header as well: `read(-1)` would read the whole archive into memory."""
    header = bytearray(special("a", kind).tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"not a number"
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * ord(" "))
    assert "malformed size" in fails(bytes(header) + tar_of([("b", b"content")]), tmp_path / "a")


@pytest.mark.parametrize("cut", [600, 1500])
def test_archive_that_is_cut_off_is_an_error(cut: int, tmp_path: Path) -> None:
    assert "not complete" in fails(tar_of([("a", b"x" * 1000), ("b", b"y" * 1000)])[:cut], tmp_path / "a")


@pytest.mark.parametrize("data", [b"x" * 1024, b"PK\x03\x04" + bytes(1000), bytes(10) + b"y" * 600])
def test_file_of_another_kind_is_an_error(data: bytes, tmp_path: Path) -> None:
    assert "not a tar archive" in fails(data, tmp_path / "a")


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"5 a=b",
        b"6 a=b\n9",
        b"99 a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"6 a b\n",
        b"9999999 a=b\n",
        b"12 size=12x\n",
        b"12 size=-12\n",
    ],
)
def test_malformed_extended_header_is_an_error(records: bytes, tmp_path: Path) -> None:
    header = special("x", tarfile.XHDTYPE)
    header.size = len(records)
    data = header.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + tar_of([("a", b"")])
    assert "malformed" in fails(data, tmp_path / "a")


@given(st.binary(max_size=1600), st.integers(0, 1500))
def test_damaged_archive_is_read_or_an_error(damage: bytes, at: int) -> None:
    data = tar_of([("a", b"1"), ("b" * 120, b"2")])
    data = data[:at] + damage + data[at + len(damage) :]
    with io.FileIO(_memory(data), "rb") as raw, io.BufferedReader(raw) as file, contextlib.suppress(ArchiveError):
        for entry in index_tar(file).values():
            assert entry.offset + entry.size <= len(data)


def _memory(data: bytes) -> int:
    """Return a descriptor of a file in memory."""
    descriptor = os.memfd_create("archive")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
