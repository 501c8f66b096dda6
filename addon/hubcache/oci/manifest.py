"""What the cache must know of a manifest: which content it refers to. The raw bytes are kept, never re-serialised."""

from dataclasses import dataclass

from .digest import Digest
from .errors import DigestInvalid, ManifestInvalid
from .json_reader import read_json

MAX_MANIFEST = 4 << 20
"""Bytes; the cap of distribution and containerd. A larger manifest is refused."""

MAX_DESCRIPTORS = 2_000
"""Descriptors of one manifest. Real ones have far fewer: dockerd refuses more than 127 layers (overlay2's limit is
128), the largest official indexes have some 40 entries, attestations included, and fallback tags one for each
signature. Each costs a row of the store, and 4 MiB have room for 40,000."""

_MAX_OBJECTS, _MAX_VALUES = 4 * MAX_DESCRIPTORS, 20 * MAX_DESCRIPTORS
"""Braces and commas of a manifest, which are counted before it is parsed: a descriptor has a platform and annotations,
of some fields each. To parse 4 MiB of small values takes 40 ms, in which nobody else is served."""

_ATTESTS = "vnd.docker.reference.digest"
_KIND = "vnd.docker.reference.type"
_ATTESTATION = "attestation-manifest"
"""How BuildKit marks in an index the manifest with the attestations of another (moby/buildkit,
docs/attestations/attestation-storage.md)."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference from a manifest to other content (OCI image-spec, descriptor.md).

    `size` in bytes; `platform` as os/architecture/variant, for a manifest that an index refers to; `attests` is the
    manifest of the same index whose attestations are in this one.
    """

    digest: Digest
    size: int
    is_manifest: bool
    platform: str | None = None
    attests: Digest | None = None


def parse_manifest(body: bytes) -> tuple[Descriptor, ...]:
    """The content a manifest or index refers to, in order; raises `ManifestInvalid`.

    Image manifests (config, layers), indexes (manifests), artifact manifests (blobs) and JSON of media types not
    known here (no references) are all accepted: what a manifest means is the client's business. More than
    `MAX_DESCRIPTORS` are refused, before any of them is looked at.
    """
    return _references(_document(body))


def parse_image_index(body: bytes) -> tuple[Descriptor, ...]:
    """As `parse_manifest`, for what must be an index, if only an empty one (Go writes an empty list as `null`)."""
    document = _document(body)
    if "manifests" not in document:
        raise ManifestInvalid("not an image index")
    return _references(document)


def _document(body: bytes) -> dict[str, object]:
    if len(body) > MAX_MANIFEST:
        raise ManifestInvalid("manifest is too large", {"size": len(body), "limit": MAX_MANIFEST})
    if body.count(b"{") > _MAX_OBJECTS or body.count(b",") > _MAX_VALUES:
        raise ManifestInvalid("manifest refers to too much", {"size": len(body), "limit": MAX_DESCRIPTORS})
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
        raise ManifestInvalid("manifest refers to too much", {"descriptors": count, "limit": MAX_DESCRIPTORS})
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
    """The manifest that annotations of an index's entry say this one has the attestations of."""
    if not isinstance(annotations, dict) or annotations.get(_KIND) != _ATTESTATION:
        return None
    try:
        return Digest.parse(str(annotations.get(_ATTESTS)))
    except DigestInvalid:
        return None  # an annotation is free text, and what it says here concerns nothing but prefetching


def _platform(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    return "/".join(str(value.get(key) or "") for key in ("os", "architecture", "variant"))
