"""Parses the content that a manifest refers to (OCI image-spec, manifest.md and image-index.md).

The store keeps the raw bytes of a manifest; they are never serialised again.
"""

from dataclasses import dataclass

from .digest import Digest
from .errors import DigestInvalid, ManifestInvalid
from .json_reader import read_json

MAX_MANIFEST = 4 << 20
"""Bytes; the limit of distribution/distribution and containerd. Larger manifests are refused."""

MAX_DESCRIPTORS = 2_000
"""Descriptors of one manifest. Real ones have far fewer: dockerd refuses more than 127 layers (overlay2's limit is
128), the largest official image indexes have some 40 entries, including attestations, and fallback tags have one for
each signature. Each costs a row in the store's index, and 4 MiB can contain 40,000."""

_MAX_OBJECTS, _MAX_VALUES = 4 * MAX_DESCRIPTORS, 20 * MAX_DESCRIPTORS
"""Limits of braces and commas in a manifest, which are counted before it is parsed: a descriptor has a platform and
annotations, with some fields each. Parsing 4 MiB of small values takes 40 ms, in which no other client is served."""

_ATTESTS = "vnd.docker.reference.digest"
_KIND = "vnd.docker.reference.type"
_ATTESTATION = "attestation-manifest"
"""How BuildKit marks the manifest with another one's attestations in an image index (moby/buildkit,
docs/attestations/attestation-storage.md)."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference from a manifest to other content (OCI image-spec, descriptor.md).

    `size` in bytes; `platform` as os/architecture/variant, for a manifest in an image index; `attests` is the manifest
    of the same image index whose attestations this one contains.
    """

    digest: Digest
    size: int
    is_manifest: bool
    platform: str | None = None
    attests: Digest | None = None


def parse_manifest(body: bytes) -> tuple[Descriptor, ...]:
    """Return the descriptors of a manifest or image index, in order; raises `ManifestInvalid`.

    Image manifests (config, layers), image indexes (manifests), artifact manifests (blobs) and JSON of unknown media
    types (no descriptors) are all accepted: clients decide what a manifest means. More than `MAX_DESCRIPTORS` are
    refused before any of them is parsed.
    """
    return _references(_document(body))


def parse_image_index(body: bytes) -> tuple[Descriptor, ...]:
    """Parse an image index like `parse_manifest`; it may be empty (Go writes an empty list as `null`)."""
    document = _document(body)
    if "manifests" not in document:
        raise ManifestInvalid("not an image index")
    return _references(document)


def _document(body: bytes) -> dict[str, object]:
    if len(body) > MAX_MANIFEST:
        raise ManifestInvalid("manifest is too large", {"size": len(body), "limit": MAX_MANIFEST})
    if body.count(b"{") > _MAX_OBJECTS or body.count(b",") > _MAX_VALUES:
        raise ManifestInvalid("manifest has too many descriptors", {"size": len(body), "limit": MAX_DESCRIPTORS})
    try:
        document = read_json(body, MAX_MANIFEST)
    except ValueError as error:
        raise ManifestInvalid("manifest is not JSON") from error
    if not isinstance(document, dict):
        raise ManifestInvalid("manifest is not a JSON object")
    return document


def _references(document: dict[str, object]) -> tuple[Descriptor, ...]:
    count = sum(len(_list(document, key)) for key in ("manifests", "layers", "blobs"))
    if count > MAX_DESCRIPTORS:
        raise ManifestInvalid("manifest has too many descriptors", {"descriptors": count, "limit": MAX_DESCRIPTORS})
    found = [_descriptor(item, is_manifest=True) for item in _list(document, "manifests")]
    if "config" in document:
        found.append(_descriptor(document["config"], is_manifest=False))
    for key in ("layers", "blobs"):
        found += [_descriptor(item, is_manifest=False) for item in _list(document, key)]
    return tuple(found)


def _list(document: dict[str, object], key: str) -> list[object]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise ManifestInvalid("manifest field is not a list", {"field": key})
    return value


def _descriptor(item: object, *, is_manifest: bool) -> Descriptor:
    if not isinstance(item, dict):
        raise ManifestInvalid("descriptor is not a JSON object")
    digest, size = item.get("digest"), item.get("size")
    if not isinstance(digest, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ManifestInvalid("descriptor lacks a digest or a size", {"digest": str(digest)[:200]})
    try:
        described = Digest.parse(digest)
    except DigestInvalid as error:
        raise ManifestInvalid(error.message, error.detail) from error
    return Descriptor(described, size, is_manifest, _platform(item.get("platform")), _attested(item.get("annotations")))


def _attested(annotations: object) -> Digest | None:
    """Return the manifest whose attestations an entry of an image index contains, from the entry's annotations."""
    if not isinstance(annotations, dict) or annotations.get(_KIND) != _ATTESTATION:
        return None
    try:
        return Digest.parse(str(annotations.get(_ATTESTS)))
    except DigestInvalid:
        return None  # an annotation is free text, and this one matters for prefetching only


def _platform(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    return "/".join(str(value.get(key) or "") for key in ("os", "architecture", "variant"))
