"""Reads stored images from the index, in a thread: parsing the manifests of 100,000 objects takes a second or two."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import batched, chain
from pathlib import Path
from typing import Any

from ..decide.records import TagRecord
from ..oci.digest import Digest
from ..oci.errors import ManifestInvalid
from ..oci.image_name import ImageName
from ..oci.json_reader import MAX_JSON, read_json
from ..oci.manifest import MAX_MANIFEST, Descriptor, parse_manifest
from ..oci.reference import subject_of_tag
from ..store.index import Index
from ..store.inventory import without_gc
from ..store.listing import list_manifests, list_private, list_referrers, list_repositories, list_tags
from ..store.stored_blob import open_regular
from ..store.tag_facts import read_referrers
from .image_content import ImageContent, read_image

_FIELDS = 5
"""Fields of a descriptor."""

type Image = dict[str, Any]
"""An image as the commands describe it, in JSON types."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is stored at one moment: `sizes` of content, the `pinned` digests and the pinned images (`pins`)."""

    index: Index
    sizes: Mapping[Digest, int]
    pinned: frozenset[Digest]
    pins: frozenset[ImageName]

    def read(self, digest: Digest) -> bytes | None:
        """Return the bytes of one stored manifest, which are not verified."""
        return next((body for _, body in list_manifests(self.index, digest)), None) if digest in self.sizes else None

    def descriptors(self, digest: Digest) -> tuple[Descriptor, ...] | None:
        """Return what a stored manifest refers to; None when it is not stored."""
        body = self.read(digest)
        return None if body is None else _parse(body)


@without_gc()
def list_images(snapshot: Snapshot) -> tuple[list[Image], list[Digest | None]]:
    """Return the stored images, and the config of each whose platform no index contains.

    A full garbage collection would stop the event loop for a tenth of a second, because of the many new objects.
    """
    manifests = {digest: _packed(found) for digest, found in _parsed(snapshot.index)}
    private = list_private(snapshot.index)
    images, configs = list[Image](), list[Digest | None]()

    def read(digest: Digest) -> tuple[Descriptor, ...] | None:
        packed = manifests.get(digest)
        return None if packed is None else tuple(Descriptor(*each) for each in batched(packed, _FIELDS))

    for name, root in _named_roots(snapshot, manifests):
        content = read_image(root, read, snapshot.sizes)
        images.append(describe(snapshot, name, content, is_private=root in private))
        configs.append(config_of(content))
    while manifests:  # one by one: to free all of them at once would stop the event loop as well
        manifests.popitem()
    return images, configs


def _parsed(index: Index) -> Iterator[tuple[Digest, tuple[Descriptor, ...]]]:
    for digest, body in list_manifests(index):
        found = _parse(body)
        if found is not None:
            yield digest, found


def _packed(found: tuple[Descriptor, ...]) -> tuple[Any, ...]:
    """Return all descriptors in one flat tuple. The garbage collector would traverse a hundred thousand objects, and
    stop the event loop for half a second; it ignores tuples of text and numbers."""
    return tuple(
        chain.from_iterable((one.digest, one.size, one.is_manifest, one.platform, one.attests) for one in found)
    )


def _named_roots(snapshot: Snapshot, manifests: Mapping[Digest, tuple[Any, ...]]) -> Iterator[tuple[ImageName, Digest]]:
    """Return the names of all images and their first manifests: of tags, except of those made from a digest, and of
    `manifests` (as `_packed` returns them) to which neither a tag nor stored content refers."""
    tags = list_tags(snapshot.index)
    for name, records in tags.items():
        root = choose_root(records, snapshot.sizes)
        if isinstance(name.reference, str) and subject_of_tag(name.reference) is None and root in manifests:
            yield name, root
    listings = (one.digest for records in list_referrers(snapshot.index).values() for one in records.values())
    used = {record.digest for records in tags.values() for record in records.values()}
    used.update(digest for digest in listings if digest is not None)
    for packed in manifests.values():
        used.update(
            digest for digest, is_manifest in zip(packed[::_FIELDS], packed[2::_FIELDS], strict=True) if is_manifest
        )
    untagged = manifests.keys() - used
    repositories = list_repositories(snapshot.index, untagged)
    for digest in untagged:
        for registry, repository in repositories.get(digest, {("", ""): None}):
            yield ImageName(registry, repository, digest), digest


def choose_root(records: Mapping[str, TagRecord], stored: Mapping[Digest, int]) -> Digest:
    """Return the digest of a tag: clients that accept other media types may receive another one. The one that was
    validated last counts, of those that are stored."""
    return max(records.values(), key=lambda record: (record.digest in stored, record.validated_at)).digest


def describe(snapshot: Snapshot, name: ImageName, content: ImageContent, *, is_private: bool) -> Image:
    """Return the description of an image, as a list contains it."""
    return {
        "name": str(name) if name.repository else str(name.reference),
        "registry": name.host,
        "repository": name.repository,
        "tag": None if isinstance(name.reference, Digest) else name.reference,
        "digest": str(content.root),
        **content.summary(snapshot.sizes),
        "pinned": name in snapshot.pins or content.root in snapshot.pinned,
        "private": is_private,
    }


def show_image(snapshot: Snapshot, name: ImageName, root: Digest, *, is_private: bool) -> tuple[Image, Digest | None]:
    """Return the description of one image with its manifests, blobs and referrers, and its config as above."""
    content = read_image(root, snapshot.descriptors, snapshot.sizes)
    image = describe(snapshot, name, content, is_private=is_private)
    image["media_type"] = _text(_document(snapshot, root), "mediaType")
    image["manifests"] = [
        {
            "digest": str(manifest.digest),
            "platform": manifest.platform,
            "size": manifest.size,
            "stored": manifest.is_stored,
            "complete": manifest.is_complete(snapshot.sizes),
            "attests": manifest.attests,
            "blobs": _blobs(snapshot, manifest.digest, manifest.blobs),
        }
        for manifest in content.manifests
    ]
    image["referrers"] = list(_referrers(snapshot, name, {root, *(each.digest for each in content.manifests)}))
    return image, config_of(content)


def _blobs(snapshot: Snapshot, manifest: Digest, blobs: tuple[Descriptor, ...]) -> list[Image]:
    document = _document(snapshot, manifest)
    entries = [document.get("config"), *_list(document, "layers"), *_list(document, "blobs")]
    types = {entry.get("digest"): _text(entry, "mediaType") for entry in entries if isinstance(entry, dict)}
    return [
        {
            "digest": str(blob.digest),
            "size": blob.size,
            "media_type": types.get(str(blob.digest)),
            "stored": blob.digest in snapshot.sizes,
        }
        for blob in blobs
    ]


def _referrers(snapshot: Snapshot, name: ImageName, subjects: set[Digest]) -> Iterator[Image]:
    """Return the known referrers of these manifests: those that a stored listing contains, and those at a tag that
    cosign made from the digest."""
    found = read_referrers(snapshot.index, name.host, name.repository)
    for subject in subjects & found.keys():
        referrers: dict[str, str | None] = {}
        for digest in found[subject]:
            document = _document(snapshot, digest)
            if "manifests" not in document:
                referrers[digest] = _text(document, "artifactType")
            for entry in _list(document, "manifests"):
                if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
                    referrers[entry["digest"]] = _text(entry, "artifactType")
        for referrer, artifact_type in referrers.items():
            is_stored = referrer in snapshot.sizes
            yield {"digest": referrer, "subject": subject, "artifact_type": artifact_type, "stored": is_stored}


def config_of(content: ImageContent) -> Digest | None:
    """Return the config of an image without an index; its manifest does not contain the platform."""
    if content.is_index or len(content.manifests) != 1 or not content.manifests[0].blobs:
        return None
    first = content.manifests[0].blobs[0]  # the config comes before the layers
    return first.digest if first.size <= MAX_JSON else None


def read_platform(path: Path) -> str | None:
    """Return the platform that an image's config contains (OCI image-spec, config.md); None for other content."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            config = read_json(file.read(MAX_JSON + 1))
    except (OSError, ValueError):  # it was evicted, is damaged, which a verification reports, or is no config
        return None
    parts = [_text(config, key) for key in ("os", "architecture", "variant")] if isinstance(config, dict) else []
    return "/".join(filter(None, parts)) if all(parts[:2]) else None


def _parse(body: bytes) -> tuple[Descriptor, ...] | None:
    try:
        return parse_manifest(body)
    except ManifestInvalid:
        return None


def _document(snapshot: Snapshot, digest: Digest) -> dict[str, Any]:
    body = snapshot.read(digest)
    try:
        document = read_json(body or b"", MAX_MANIFEST)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _list(document: dict[str, Any], key: str) -> list[object]:
    value = document.get(key)
    return value if isinstance(value, list) else []


def _text(document: dict[str, Any], key: str) -> str | None:
    value = document.get(key)
    return value if isinstance(value, str) else None
