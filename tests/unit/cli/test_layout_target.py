"""Layouts that are written: verified, complete or absent, and continued after a failure."""

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hubcache.cli.errors import CommandError, UsageError
from hubcache.cli.layout_source import blob_name, open_layout
from hubcache.cli.layout_target import open_target
from hubcache.cli.oci_layout import index_document, read_layout
from hubcache.oci.digest import Digest
from support.layouts import LayoutFiles, digest_of

EACH_FORM = pytest.mark.parametrize("form", ["out.tar", "out"])


def content(files: LayoutFiles) -> Iterator[tuple[Digest, bytes]]:
    """Return the content of a layout by digest."""
    for name, data in files.files.items():
        if name.startswith("blobs/"):
            yield Digest(digest_of(data)), data


@pytest.fixture
def files() -> LayoutFiles:
    files = LayoutFiles()
    files.entry(files.manifest(b"one", b"two" * 1_000_000, b""))
    return files


def write(path: Path, files: LayoutFiles) -> None:
    with open_target(str(path), io.BytesIO()) as target:
        for digest, data in content(files):
            target.add(digest, len(data), io.BytesIO(data))
        target.finish(index_document(files.entries), b"[]")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@EACH_FORM
def test_layout_is_read_again(form: str, files: LayoutFiles, tmp_path: Path) -> None:
    write(tmp_path / form, files)
    with open_layout(tmp_path / form) as source:
        layout = read_layout(source)
        assert [image.name for image in layout.images] == ["app:1"]
        for digest, data in content(files):
            assert source.open(blob_name(digest)).read() == data
    assert names_in(tmp_path) == [form]


def test_archive_is_written_to_standard_output(files: LayoutFiles) -> None:
    output = io.BytesIO()
    with open_target("-", output) as target:
        target.add(Digest(digest_of(b"x")), 1, io.BytesIO(b"x"))
        target.finish(b"{}", b"[]")
    output.seek(0)
    with tarfile.open(fileobj=output) as archive:
        names = archive.getnames()
    assert names == [
        "blobs",
        "blobs/sha256",
        blob_name(Digest(digest_of(b"x"))),
        "manifest.json",
        "oci-layout",
        "index.json",
    ]
    again = io.BytesIO()
    with open_target("-", again) as target:
        target.add(Digest(digest_of(b"x")), 1, io.BytesIO(b"x"))
        target.finish(b"{}", b"[]")
    assert again.getvalue() == output.getvalue(), "equal images make equal archives"


@pytest.mark.parametrize("sent", [b"wrong", b"righ", b"right!", b""])
@EACH_FORM
def test_wrong_content_is_an_error(form: str, sent: bytes, tmp_path: Path) -> None:
    with (
        pytest.raises(CommandError, match="damaged or not completely"),
        open_target(str(tmp_path / form), io.BytesIO()) as target,
    ):
        target.add(Digest(digest_of(b"right")), 5, io.BytesIO(sent))
    assert not (tmp_path / form).exists()


def test_unfinished_archive_is_removed(files: LayoutFiles, tmp_path: Path) -> None:
    (tmp_path / "out.tar").write_bytes(b"an older archive")
    with suppress(KeyboardInterrupt), open_target(str(tmp_path / "out.tar"), io.BytesIO()) as target:
        target.add(Digest(digest_of(b"x")), 1, io.BytesIO(b"x"))
        raise KeyboardInterrupt
    assert names_in(tmp_path) == ["out.tar"]
    assert (tmp_path / "out.tar").read_bytes() == b"an older archive"


def test_unfinished_directory_is_continued(tmp_path: Path) -> None:
    good, damaged, missing = (Digest(digest_of(data)) for data in (b"good", b"damaged", b"missing"))
    with suppress(KeyboardInterrupt), open_target(str(tmp_path / "out"), io.BytesIO()) as target:
        target.add(good, 4, io.BytesIO(b"good"))
        target.add(damaged, 7, io.BytesIO(b"damaged"))
        raise KeyboardInterrupt
    assert names_in(tmp_path) == [".out.partial"]
    (tmp_path / ".out.partial" / blob_name(damaged)).write_bytes(b"d\0maged")
    with open_target(str(tmp_path / "out"), io.BytesIO()) as target:
        assert [target.has(each, len(data)) for each, data in ((good, "good"), (damaged, "damaged"))] == [True, False]
        assert not target.has(missing, 7)
        target.add(damaged, 7, io.BytesIO(b"damaged"))
        target.finish(b"{}", b"[]")
    assert names_in(tmp_path) == ["out"]
    assert (tmp_path / "out" / blob_name(damaged)).read_bytes() == b"damaged"
    assert json.loads((tmp_path / "out/oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_output_that_exists_is_not_replaced(files: LayoutFiles, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", files)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(UsageError, match="exists: name a new directory"):
            write(tmp_path / name, files)


def test_directory_of_another_user_is_not_continued(
    files: LayoutFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory such as /tmp, the other user could place links to files that this user may write."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".link.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"\.link\.partial is a link, or belongs to another user"):
        write(tmp_path / "link", files)
    assert names_in(tmp_path / "elsewhere") == []
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UsageError, match=r"\.out\.partial is a link, or belongs to another user"):
        write(tmp_path / "out", files)
    assert names_in(tmp_path / ".out.partial") == []


def test_archive_is_not_written_to_a_terminal() -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    output = Terminal()
    with pytest.raises(UsageError, match="cannot be shown on a terminal"), open_target("-", output):
        pytest.fail("the target was opened")
    assert output.getvalue() == b""


@EACH_FORM
def test_output_that_cannot_be_written_is_an_error(form: str, files: LayoutFiles, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be written: No such file"):
        write(tmp_path / "missing" / form, files)
