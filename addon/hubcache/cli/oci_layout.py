"""The images in an OCI image layout (OCI image-spec, image-layout.md and annotations.md).

Layouts of this program, skopeo, buildx and containerd are read. A name comes from the annotation of containerd, which
buildx writes as well, or from `org.opencontainers.image.ref.name` if that is a whole name, as skopeo's user may write
it, and not only a tag.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..oci.digest import Digest
from ..oci.errors import DigestInvalid, ManifestInvalid, RegistryError
from ..oci.image_name import ImageName
from ..oci.json_reader import read_json
from ..oci.manifest import MAX_MANIFEST, Descriptor, parse_manifest
from ..oci.media import OCI_INDEX, is_content_type, media_type_of
from ..oci.registry import HUB_HOST
from .layout_source import LayoutSource, blob_name
from .tar_index import ArchiveError

LAYOUT_FILE, INDEX_FILE, DOCKER_FILE = "oci-layout", "index.json", "manifest.json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

CONTAINERD_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

MAX_CONTENTS = 10_000
"""Manifests and blobs of one layout."""

_MAX_DEPTH = 4
"""Steps from an image's first manifest to its last."""


@dataclass(slots=True)
class LayoutImage:
    """An image in a layout: its name (None where it has none), its first manifest, and the digest that it refers to if
    it is a referrer.

    `manifests` has the media types of all its manifests, each after those that it refers to.
    """

    name: str | None
    digest: Digest
    subject: Digest | None = None
    manifests: dict[Digest, str] = field(default_factory=dict)


@dataclass(slots=True)
class Layout:
    """The images of a layout and their content, sizes in bytes by digest."""

    images: list[LayoutImage] = field(default_factory=list)
    sizes: dict[Digest, int] = field(default_factory=dict)

    @property
    def manifests(self) -> dict[Digest, str]:
        """The media types of all manifests, each after those that it refers to."""
        return {digest: kind for image in self.images for digest, kind in image.manifests.items()}


def full_name(image: ImageName) -> str:
    """Return an image's name with its registry, as containerd and podman expect it: `docker.io/library/debian:12`."""
    host = "docker.io" if image.host == HUB_HOST else image.host
    return f"{host}/{image.repository}{'@' if isinstance(image.reference, Digest) else ':'}{image.reference}"


def index_document(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the `index.json` of a layout with these descriptors."""
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    return json.dumps(document, indent=2).encode()


def docker_document(images: Iterable[tuple[ImageName, list[str]]]) -> bytes:
    """Return a `manifest.json` for images with the digests of their config and layers (moby/moby, image/tarexport).

    Docker reads it where it has no containerd image store; `docker save` writes it beside `index.json`, too.
    """
    entries = []
    for image, (config, *layers) in images:
        names = [] if isinstance(image.reference, Digest) else [str(image)]
        paths = [blob_name(Digest.parse(layer)) for layer in layers]
        entries.append({"Config": blob_name(Digest.parse(config)), "RepoTags": names, "Layers": paths})
    return json.dumps(entries, indent=2).encode()


def read_layout(source: LayoutSource) -> Layout:
    """Return the images of a layout whose manifests are verified; raises `ArchiveError`.

    All content that a present manifest refers to is present, except manifests of an image index for other platforms.
    """
    _check_version(source)
    body = _read(source, INDEX_FILE, MAX_MANIFEST)
    try:
        described = [each for each in parse_manifest(body) if each.is_manifest]
    except ManifestInvalid as error:
        raise ArchiveError(f"{INDEX_FILE}: {error}") from error
    if not described:
        raise ArchiveError(f"{INDEX_FILE} has no manifests")
    reader = _Reader(source)
    for entry, each in zip(_document(body, INDEX_FILE)["manifests"], described, strict=True):
        reader.add(entry, each)
    return reader.layout


def _check_version(source: LayoutSource) -> None:
    if source.size(LAYOUT_FILE) is None:
        kind = "an archive of docker save; export it with skopeo" if source.size(DOCKER_FILE) else "something else"
        raise ArchiveError(f"it has no file {LAYOUT_FILE}: it is not an OCI image layout, but {kind}")
    version = _document(_read(source, LAYOUT_FILE, 4096), LAYOUT_FILE).get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise ArchiveError(f"its image layout version is {str(version)[:50]!r}; expected 1.0.0")


class _Reader:
    """Reads the entries of one index."""

    def __init__(self, source: LayoutSource) -> None:
        self.layout = Layout()
        self._source = source
        self._children: dict[Digest, tuple[Descriptor, ...]] = {}
        self._types: dict[Digest, str] = {}
        self._subjects: dict[Digest, Digest | None] = {}

    def add(self, entry: Mapping[str, Any], described: Descriptor) -> None:
        """Add the image of an entry in `index.json`."""
        image = LayoutImage(_name_of(entry.get("annotations")), described.digest)
        if not self._add_manifest(described, str(entry.get("mediaType") or ""), image, 0):
            raise ArchiveError(f"the manifest {described.digest} is missing")
        image.subject = self._subjects[described.digest]
        self.layout.images.append(image)

    def _add_manifest(self, described: Descriptor, label: str, image: LayoutImage, depth: int) -> bool:
        """Add a manifest and all below it; return whether it is present."""
        digest = described.digest
        if digest in image.manifests:
            return True
        if depth > _MAX_DEPTH:
            raise ArchiveError(f"{image.digest} refers to manifests that are nested too deeply")
        if digest not in self._children:
            if self._source.size(blob_name(digest)) is None:
                return False
            self._parse(described, label)
        children = self._children[digest]
        below = [child for child in children if child.is_manifest]
        present = [self._add_manifest(child, "", image, depth + 1) for child in below]
        if below and not any(present):
            raise ArchiveError(f"none of the manifests that {digest} refers to is in it")
        for child in children:
            if not child.is_manifest:
                self._add_content(child)
        image.manifests[digest] = self._types[digest]
        return True

    def _parse(self, described: Descriptor, label: str) -> None:
        digest = described.digest
        self._add_content(described)
        body = _read(self._source, blob_name(digest), MAX_MANIFEST)
        if not digest.matches(body):
            raise ArchiveError(f"the content of {digest} does not match its digest")
        try:
            self._children[digest] = parse_manifest(body)
        except ManifestInvalid as error:
            raise ArchiveError(f"the manifest {digest} is malformed: {error}") from error
        self._types[digest] = media_type_of(body) or label
        if not is_content_type(self._types[digest]):
            raise ArchiveError(f"the manifest {digest} has no valid media type")
        self._subjects[digest] = _subject_of(body)

    def _add_content(self, described: Descriptor) -> None:
        """Add a blob or a manifest, which must be present in its full size."""
        size = self._source.size(blob_name(described.digest))
        if size is None:
            raise ArchiveError(f"the blob {described.digest} is missing")
        if size != described.size:
            raise ArchiveError(f"{described.digest} has {size} bytes; its descriptor says {described.size}")
        self.layout.sizes[described.digest] = size
        if len(self.layout.sizes) > MAX_CONTENTS:
            raise ArchiveError(f"it has more than {MAX_CONTENTS} manifests and blobs")


def _name_of(annotations: object) -> str | None:
    """Return the name of an image from its annotations, None without a whole name; raises `ArchiveError`."""
    if not isinstance(annotations, dict):
        return None
    name = annotations.get(CONTAINERD_NAME) or annotations.get(REF_NAME)
    if not isinstance(name, str) or not ("/" in name or ":" in name):
        return None
    try:
        return str(ImageName.parse(name))
    except RegistryError as error:
        raise ArchiveError(f"{name[:200]!r} is not the name of an image: {error}") from error


def _subject_of(body: bytes) -> Digest | None:
    subject = _document(body, "a manifest").get("subject")
    if not isinstance(subject, dict):
        return None
    try:
        return Digest.parse(str(subject.get("digest")))
    except DigestInvalid as error:
        raise ArchiveError(f"a manifest has a malformed subject: {error}") from error


def _document(body: bytes, name: str) -> dict[str, Any]:
    try:
        document = read_json(body, MAX_MANIFEST)
    except ValueError as error:
        raise ArchiveError(f"{name} is not JSON") from error
    if not isinstance(document, dict):
        raise ArchiveError(f"{name} is not a JSON object")
    return document


def _read(source: LayoutSource, name: str, most: int) -> bytes:
    size = source.size(name)
    if size is None:
        raise ArchiveError(f"it has no file {name}")
    if size > most:
        raise ArchiveError(f"{name} has {size} bytes, which is too large")
    return source.open(name).read()
