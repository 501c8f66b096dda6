"""What the store holds, in memory: sizes, who refers to whom, what is in use, and how much is reserved.

Rebuilt from the rows at start. It answers without SQLite, so a hit costs no query for its blob.
"""

from collections import Counter
from collections.abc import Iterator

from ..decide.records import Popularity
from ..decide.retention import victims
from ..oci.digest import Digest


class Ledger:
    """Byte account of the content: `used` is stored plus reserved for what is being staged."""

    def __init__(self) -> None:
        self.sizes: dict[Digest, int] = {}
        self.children: dict[Digest, tuple[Digest, ...]] = {}
        self.parents: dict[Digest, set[Digest]] = {}
        self.popularity: dict[Digest, Popularity] = {}
        self.in_use: Counter[Digest] = Counter()
        self.stored = 0
        self.reserved = 0

    @property
    def used(self) -> int:
        """Bytes stored and reserved."""
        return self.stored + self.reserved

    def add(self, digest: Digest, size: int, children: tuple[Digest, ...] | None = None) -> None:
        """Content is stored now; `children` is not None for a manifest."""
        self.stored += size - self.sizes.get(digest, 0)
        self.sizes[digest] = size
        if children is not None:
            self.children[digest] = children
            for child in children:
                self.parents.setdefault(child, set()).add(digest)

    def remove(self, digest: Digest) -> None:
        """Content is gone."""
        self.stored -= self.sizes.pop(digest, 0)
        for child in self.children.pop(digest, ()):
            parents = self.parents.get(child)
            if parents is not None:
                parents.discard(digest)
                if not parents:
                    del self.parents[child]

    def hold(self, digest: Digest) -> None:
        """Content is being read: it must not be evicted until `release`."""
        self.in_use[digest] += 1

    def release(self, digest: Digest) -> None:
        """Undo one `hold`."""
        self.in_use[digest] -= 1
        if self.in_use[digest] <= 0:
            del self.in_use[digest]

    def victims(self, now: float) -> Iterator[Digest]:
        """What to remove for room, in order."""
        return victims(
            set(self.sizes), self.children, self.parents, self.popularity, now, lambda digest: digest in self.in_use
        )
