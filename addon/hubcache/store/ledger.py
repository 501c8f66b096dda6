"""What the store holds, in memory: sizes, what manifests refer to, what is in use or pinned, and what is reserved.

Rebuilt from the rows at start. It answers without SQLite, so a hit costs no query for its size.
"""

from collections import Counter
from collections.abc import Iterable

from ..oci.digest import Digest

BLOCK = 4096
"""Bytes of a file system block: the cap is on bytes on disk, and a file takes whole blocks there."""


class Ledger:
    """Byte account in whole blocks: `used` is what is on disk plus what is reserved for content that is being staged.

    On disk is more than what is stored: removed content that somebody still has open, and damaged content that was
    put aside.
    """

    def __init__(self) -> None:
        self.sizes: dict[Digest, int] = {}
        self.children: dict[Digest, tuple[Digest, ...]] = {}
        self.in_use: Counter[Digest] = Counter()
        self.pinned: frozenset[Digest] = frozenset()
        self.stored = 0
        self.reserved = 0
        self.quarantined = 0
        self._lingering: Counter[Digest] = Counter()

    @property
    def present(self) -> int:
        """Bytes on disk: stored, put aside, and removed but still open."""
        return self.stored + self.quarantined + self._lingering.total()

    @property
    def used(self) -> int:
        """Bytes on disk and reserved."""
        return self.present + self.reserved

    def add(self, digest: Digest, size: int, children: tuple[Digest, ...] | None = None) -> None:
        """Content is stored now; `children` is not None for a manifest."""
        self.stored += on_disk(size) - on_disk(self.sizes.get(digest, 0))
        self.sizes[digest] = size
        if children is not None:
            self.children[digest] = children

    def remove(self, digest: Digest) -> None:
        """Content is gone; its bytes count until nobody has its file open any more."""
        size = on_disk(self.sizes.pop(digest, 0))
        self.stored -= size
        self.children.pop(digest, None)
        self.linger(digest, size)

    def linger(self, digest: Digest, size: int) -> None:
        """A file of `size` bytes has lost its name; if content of this digest is being read, it may be that file."""
        if digest in self.in_use:
            self._lingering[digest] += size

    def restore(self, sizes: dict[Digest, int], children: dict[Digest, tuple[Digest, ...]]) -> None:
        """This is stored now and nothing else; what is reserved stays so."""
        self.sizes, self.children = sizes, children
        self.stored = sum(map(on_disk, sizes.values()))

    def hold(self, digest: Digest) -> None:
        """Content is being read: it must not be evicted until `release`."""
        self.in_use[digest] += 1

    def release(self, digest: Digest) -> None:
        """Undo one `hold`."""
        self.in_use[digest] -= 1
        if self.in_use[digest] <= 0:
            del self.in_use[digest]
            del self._lingering[digest]

    def keeps(self, digest: Digest) -> bool:
        """Whether content must not be evicted."""
        return digest in self.in_use or digest in self.pinned

    @property
    def kept(self) -> int:
        """Bytes that no eviction frees: stored and not to be evicted, reserved, put aside, removed but still open."""
        kept = self.pinned | self.in_use.keys()
        stored = sum(on_disk(self.sizes[digest]) for digest in kept if digest in self.sizes)
        return self.used - self.stored + stored

    def closure(self, roots: Iterable[Digest]) -> frozenset[Digest]:
        """These manifests and all that stored ones among them refer to, however deep."""
        found: set[Digest] = set()
        pending = list(roots)
        while pending:
            digest = pending.pop()
            if digest not in found:
                found.add(digest)
                pending.extend(self.children.get(digest, ()))
        return frozenset(found)


def on_disk(size: int) -> int:
    """Bytes that a file of this size takes on disk."""
    return -(-size // BLOCK) * BLOCK
