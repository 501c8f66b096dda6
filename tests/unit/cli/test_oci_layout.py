"""Image layouts are read with all their content, or refused with one sentence."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hubcache.cli import oci_layout
from hubcache.cli.layout_source import Part, open_layout
from hubcache.cli.oci_layout import Layout, read_layout
from hubcache.cli.tar_index import ArchiveError
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layouts import CONTAINERD, LayoutFiles, digest_of, special, tar_of

EACH_FORM = pytest.mark.parametrize("form", ["layout.tar", "layout"])


class MemorySource:
    """A layout in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def size(self, name: str) -> int | None:
        return len(self._files[name]) if name in self._files else None

    def open(self, name: str) -> Part:
        return Part(io.BytesIO(self._files[name]), 0, len(self._files[name]))


def read(path: Path) -> Layout:
    with open_layout(path) as source:
        return read_layout(source)


def fails(path: Path) -> str:
    with pytest.raises(ArchiveError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@EACH_FORM
def test_image_is_read_with_its_content(form: str, tmp_path: Path) -> None:
    files = LayoutFiles()
    manifest = files.manifest(b"one", b"two")
    files.entry(manifest, "ghcr.io/owner/name:v1")
    layout = read(files.write(tmp_path / form))
    (image,) = layout.images
    assert (image.name, image.digest, image.subject) == ("ghcr.io/owner/name:v1", manifest["digest"], None)
    assert layout.sizes == {
        digest_of(b"{}"): 2,
        digest_of(b"one"): 3,
        digest_of(b"two"): 3,
        manifest["digest"]: manifest["size"],
    }
    assert layout.manifests == {manifest["digest"]: manifest["mediaType"]}


@EACH_FORM
def test_index_may_lack_platforms(form: str, tmp_path: Path) -> None:
    files = LayoutFiles()
    present, absent = files.manifest(b"amd64"), files.manifest(b"arm64")
    del files.files[f"blobs/sha256/{absent['digest'].partition(':')[2]}"]
    index = files.index(absent, present)
    files.entry(index)
    (image,) = read(files.write(tmp_path / form)).images
    assert list(image.manifests) == [present["digest"], index["digest"]], "a manifest follows what it refers to"


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({CONTAINERD: "docker.io/library/debian:12", "org.opencontainers.image.ref.name": "12"}, "debian:12"),
        ({"org.opencontainers.image.ref.name": "debian:12"}, "debian:12"),
        ({"org.opencontainers.image.ref.name": "ghcr.io/o/n"}, "ghcr.io/o/n:latest"),
        ({"org.opencontainers.image.ref.name": "12"}, None),
        ({"org.opencontainers.image.ref.name": 12}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_name_comes_from_an_annotation(annotations: object, expected: str | None, tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entries.append({**files.manifest(b"layer"), "annotations": annotations})
    (image,) = read(files.write(tmp_path / "layout")).images
    assert image.name == expected


def test_subject_of_a_referrer_is_read(tmp_path: Path) -> None:
    files = LayoutFiles()
    image = files.manifest(b"layer")
    files.entry(image)
    files.entry(files.manifest(b"signature", subject=image), None)
    assert [each.subject for each in read(files.write(tmp_path / "a.tar")).images] == [None, image["digest"]]


# -- layouts that are refused ------------------------------------------------------------------------------------------


def without_layout_file(files: LayoutFiles) -> None:
    del files.files["oci-layout"]


def docker_archive(files: LayoutFiles) -> None:
    without_layout_file(files)
    files.files["manifest.json"] = b"[]"


def another_version(files: LayoutFiles) -> None:
    files.files["oci-layout"] = b'{"imageLayoutVersion":"2.0.0"}'


def malformed_layout_file(files: LayoutFiles) -> None:
    files.files["oci-layout"] = b"[" * 5000


def no_images(files: LayoutFiles) -> None:
    files.entries.clear()


def malformed_entry(files: LayoutFiles) -> None:
    files.entries.append({"digest": "sha256:../../etc/passwd", "size": 3})


def malformed_name(files: LayoutFiles) -> None:
    files.entry(files.manifest(b"layer"), "Not/A Name:1")


def missing_manifest(files: LayoutFiles) -> None:
    files.entry({"digest": digest_of(b"none"), "size": 4, "mediaType": "x/y"})


def missing_layer(files: LayoutFiles) -> None:
    files.entry(files.manifest(b"gone"))
    del files.files[f"blobs/sha256/{digest_of(b'gone').partition(':')[2]}"]


def wrong_size(files: LayoutFiles) -> None:
    files.entry(files.manifest(b"layer", layers=[files.blob(b"layer") | {"size": 1 << 50}]))


def wrong_manifest(files: LayoutFiles) -> None:
    descriptor = files.manifest(b"layer")
    name = f"blobs/sha256/{descriptor['digest'].partition(':')[2]}"
    files.files[name] = files.files[name].replace(b"schemaVersion", b"schemaVersiom")
    files.entry(descriptor)


def manifest_without_media_type(files: LayoutFiles) -> None:
    descriptor = files.blob(b'{"schemaVersion": 1}')
    del descriptor["mediaType"]
    files.entry(descriptor)


def media_type_with_a_header(files: LayoutFiles) -> None:
    files.entry(files.blob(b'{"schemaVersion": 1}', "a/b\r\nSet-Cookie: c"))


def index_without_any_manifest(files: LayoutFiles) -> None:
    files.entry(files.index({"digest": digest_of(b"none"), "size": 4}))


def deep_index(files: LayoutFiles) -> None:
    descriptor = files.manifest(b"layer")
    for _ in range(6):
        descriptor = files.index(descriptor)
    files.entry(descriptor)


def malformed_subject(files: LayoutFiles) -> None:
    files.entry(files.manifest(b"layer", subject={"digest": "sha256:none"}))


def many_entries(files: LayoutFiles) -> None:
    descriptor = files.manifest(b"layer")
    for _ in range(2_001):
        files.entry(descriptor)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_layout_file, "no file oci-layout: it is not an OCI image layout"),
        (docker_archive, "an archive of docker save"),
        (another_version, "its image layout version is '2.0.0'; expected 1.0.0"),
        (malformed_layout_file, "oci-layout"),
        (no_images, "index.json has no manifests"),
        (malformed_entry, "index.json: "),
        (malformed_name, "'Not/A Name:1' is not the name of an image"),
        (missing_manifest, f"the manifest {digest_of(b'none')} is missing"),
        (missing_layer, f"the blob {digest_of(b'gone')} is missing"),
        (wrong_size, "has 5 bytes; its descriptor says 1125899906842624"),
        (wrong_manifest, "does not match its digest"),
        (manifest_without_media_type, "has no valid media type"),
        (media_type_with_a_header, "has no valid media type"),
        (index_without_any_manifest, "none of the manifests"),
        (deep_index, "nested too deeply"),
        (malformed_subject, "malformed subject"),
        (many_entries, "too many descriptors"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@EACH_FORM
def test_layout_that_cannot_be_imported_is_an_error(
    form: str, damage: Callable[[LayoutFiles], None], message: str, tmp_path: Path
) -> None:
    files = LayoutFiles()
    if damage is not no_images:
        files.entry(files.manifest(b"good"), "good:1")
    damage(files)
    assert message in fails(files.write(tmp_path / form))


def test_number_of_blobs_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_layout, "MAX_CONTENTS", 10)
    files = LayoutFiles()
    files.entry(files.manifest(*(bytes([n]) for n in range(9))))
    assert "more than 10 manifests and blobs" in fails(files.write(tmp_path / "a.tar"))


def test_link_in_a_directory_is_not_followed(tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entry(files.manifest(b"layer"))
    path = files.write(tmp_path / "layout")
    blob = path / "blobs/sha256" / digest_of(b"layer").partition(":")[2]
    (tmp_path / "secret").write_bytes(b"layer")
    blob.unlink()
    blob.symlink_to(tmp_path / "secret")
    assert "is not a regular file" in fails(path)
    blob.unlink()
    os.mkfifo(blob)
    assert "is not a regular file" in fails(path)


def test_link_in_an_archive_is_an_error(tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entry(files.manifest(b"layer"))
    (tmp_path / "a.tar").write_bytes(tar_of([special("blobs", b"2", "/etc"), *files.complete().items()]))
    assert "'blobs' is a symbolic link" in fails(tmp_path / "a.tar")


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd"])
def test_compressed_archive_is_an_error(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(start + bytes(2000))
    assert "it is compressed: decompress it first" in fails(tmp_path / "a.tar")


def test_path_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in fails(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a directory nor a regular file" in fails_with_writer(tmp_path / "pipe")


def fails_with_writer(pipe: Path) -> str:
    """Read a pipe that has a writer: without one, opening it would wait."""
    writer = os.open(pipe, os.O_RDWR)
    try:
        return fails(pipe)
    finally:
        os.close(writer)


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["manifests", "digest", "size", "annotations", "config", "layers"]), inner, max_size=4
            )
        ),
    )
)
def test_every_index_is_read_or_an_error(document: object) -> None:
    files = LayoutFiles()
    contents = files.complete() | {"index.json": json.dumps(document).encode()}

    with pytest.raises(ArchiveError):
        read_layout(MemorySource(contents))
