"""Measures how much of an image is stored: pure functions of parsed manifests and sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..oci.digest import Digest
from ..oci.manifest import Descriptor

MAX_MANIFESTS = 256
"""Manifests of one image that are read; the largest official indexes have some 40, attestations included."""

_UNKNOWN = "unknown/unknown"
"""Platform of attestations (moby/buildkit, docs/attestations/attestation-storage.md)."""

type ReadManifest = Callable[[Digest], tuple[Descriptor, ...] | None]
"""Returns the descriptors of a stored manifest; None when it is not stored."""


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """A stored manifest of an image that refers to blobs, or a manifest of an index that is not stored.

    `platform` as os/architecture/variant, "" where the index does not contain it; `attests`: see `Descriptor`.
    """

    digest: Digest
    size: int
    platform: str
    attests: Digest | None
    blobs: tuple[Descriptor, ...]
    is_stored: bool

    def is_complete(self, sizes: Mapping[Digest, int]) -> bool:
        """Whether the manifest and all its blobs are stored."""
        return self.is_stored and all(blob.digest in sizes for blob in self.blobs)

    @property
    def is_platform(self) -> bool:
        """Whether clients run this manifest: it is not an attestation."""
        return self.attests is None and self.platform != _UNKNOWN


@dataclass(frozen=True, slots=True)
class ImageContent:
    """The content of one image as far as its manifests are stored. `parts` are the sizes by digest of its stored
    manifests and of all blobs that these refer to."""

    root: Digest
    is_index: bool
    manifests: tuple[ImageManifest, ...]
    parts: Mapping[Digest, int]

    def summary(self, sizes: Mapping[Digest, int]) -> dict[str, object]:
        """Return what a list of images shows. An image is complete when of each platform whose manifest is stored all
        blobs are; a pull of one that no client has pulled yet does not count."""
        pulled = [each for each in self.manifests if each.is_stored and each.is_platform]
        complete = [each for each in pulled if each.is_complete(sizes)]
        return {
            "platforms": [each.platform for each in pulled if each.platform],
            "complete_platforms": [each.platform for each in complete if each.platform],
            "size": sum(self.parts.values()),
            "stored_bytes": sum(size for digest, size in self.parts.items() if digest in sizes),
            "complete": bool(pulled) and len(complete) == len(pulled),
        }


def read_image(root: Digest, read: ReadManifest, sizes: Mapping[Digest, int]) -> ImageContent:
    """Follow an image from its first manifest, which need not be stored."""
    parts: dict[Digest, int] = {}
    manifests: list[ImageManifest] = []
    is_index = False
    pending: dict[Digest, Descriptor | None] = {root: None}
    seen = {root}
    while pending:
        digest = next(iter(pending))
        entry = pending.pop(digest)
        children = read(digest)
        platform = (entry.platform or "").rstrip("/") if entry else ""
        size = sizes.get(digest, entry.size if entry else 0)
        if children is not None:
            parts[digest] = size
            parts.update((child.digest, child.size) for child in children if not child.is_manifest)
        below = [child for child in children or () if child.is_manifest]
        if below:
            is_index = is_index or digest == root
            new = [child for child in below if child.digest not in seen][: MAX_MANIFESTS - len(seen)]
            seen.update(child.digest for child in new)
            pending.update((child.digest, child) for child in new)
        elif entry is not None or children is not None:
            attests = entry.attests if entry else None
            manifests.append(ImageManifest(digest, size, platform, attests, children or (), children is not None))
    return ImageContent(root, is_index, tuple(manifests), parts)
