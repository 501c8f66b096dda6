"""The stored content of an image: what an export contains, and whether an import is complete."""

from collections.abc import Set
from dataclasses import dataclass, field

from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..oci.manifest import Descriptor
from ..serve.prefetch import MAX_DEPTH, MAX_MANIFESTS, MAX_REFERENCES, Prefetch, select_platforms
from ..store.store import Store


@dataclass(slots=True)
class StoredTree:
    """Stored manifests and blobs by digest with their sizes in bytes, a manifest after all that it refers to.

    `missing` is content without which a manifest in the tree is useless; `absent` are manifests of image indexes, for
    other platforms, that are not stored.
    """

    manifests: dict[Digest, int] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    missing: list[Digest] = field(default_factory=list)
    absent: dict[Digest, int] = field(default_factory=dict)
    platforms: dict[str, Digest] = field(default_factory=dict)
    """The manifests of an image index by their platforms, without attestations."""


def read_stored_tree(store: Store, prefetch: Prefetch, root: Digest, platforms: Set[str] | None) -> StoredTree:
    """Return the stored content of an image, for these platforms; for None, of the platforms that are complete.

    Raises `StorageError` for an image that refers to too much.
    """
    tree = StoredTree()
    found = _Reader(store, prefetch, platforms)
    if not found.read(root, tree, 0):
        tree.missing = tree.missing or [root]
    return tree


class _Reader:
    """Reads one tree, depth first."""

    def __init__(self, store: Store, prefetch: Prefetch, platforms: Set[str] | None) -> None:
        self._store = store
        self._prefetch = prefetch
        self._platforms = platforms
        self._manifests = 0
        self._references = 0

    def read(self, digest: Digest, tree: StoredTree, depth: int) -> bool:
        """Add a manifest and what is below it to the tree; return whether it is complete. Only then it is added."""
        children = self._children(digest, depth)
        if children is None:
            tree.missing.append(digest)
            return False
        missing = [child.digest for child in children if not child.is_manifest and not self._store.has(child.digest)]
        if missing:
            tree.missing += missing
            return False
        if not self._read_manifests(children, tree, depth):
            return False
        for child in children:
            if not child.is_manifest:
                tree.blobs[child.digest] = self._store.usage.sizes[child.digest]
        tree.manifests[digest] = self._store.usage.sizes[digest]
        return True

    def _read_manifests(self, children: tuple[Descriptor, ...], tree: StoredTree, depth: int) -> bool:
        """Add the manifests of an index; with platforms all that are wanted, else those that are complete."""
        below = [child for child in children if child.is_manifest]
        wanted = select_platforms(children, self._platforms)
        complete, missing = 0, list[Digest]()
        for child in wanted:
            part = StoredTree()
            if self.read(child.digest, part, depth + 1):
                complete += 1
                tree.manifests |= part.manifests
                tree.blobs |= part.blobs
                tree.absent |= part.absent
                if child.platform and child.attests is None:
                    tree.platforms.setdefault(child.platform, child.digest)
            else:
                missing += part.missing
        tree.absent |= {child.digest: child.size for child in below if child.digest not in tree.manifests}
        if self._platforms is not None or not complete:
            tree.missing += missing
        return not below or (complete > 0 and not tree.missing)

    def _children(self, digest: Digest, depth: int) -> tuple[Descriptor, ...] | None:
        children = self._prefetch.children(digest)
        self._manifests += 1
        self._references += len(children or ())
        if depth > MAX_DEPTH or self._manifests > MAX_MANIFESTS or self._references > MAX_REFERENCES:
            raise StorageError(f"{digest} refers to too many manifests or blobs")
        return children
