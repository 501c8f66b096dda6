"""What the cache must know of a manifest: which content it refers to. The raw bytes are kept, never re-serialised."""

import json
from dataclasses import dataclass

from .digest import Digest
from .errors import DigestInvalid, ManifestInvalid

MAX_MANIFEST = 4 << 20
"""Bytes; the cap of distribution and containerd. A larger manifest is refused."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference from a manifest to other content (OCI image-spec, descriptor.md).

    `size` in bytes; `platform` as os/architecture/variant, for a manifest that an index refers to.
    """

    digest: Digest
    size: int
    is_manifest: bool
    platform: str | None = None


def parse_manifest(body: bytes) -> tuple[Descriptor, ...]:
    """The content a manifest or index refers to, in order; raises `ManifestInvalid`.

    Image manifests (config, layers), indexes (manifests), artifact manifests (blobs) and JSON of media types not
    known here (no references) are all accepted: what a manifest means is the client's business.
    """
    if len(body) > MAX_MANIFEST:
        raise ManifestInvalid("manifest is too large", {"size": len(body), "limit": MAX_MANIFEST})
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid("manifest is not JSON") from error
    if not isinstance(document, dict):
        raise ManifestInvalid("manifest is not a JSON object")
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
        return Descriptor(Digest.parse(digest), size, is_manifest, _platform(item.get("platform")))
    except DigestInvalid as error:
        raise ManifestInvalid(error.message, error.detail) from error


def _platform(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    return "/".join(str(value.get(key) or "") for key in ("os", "architecture", "variant"))
