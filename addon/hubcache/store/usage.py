"""An in-memory account of the store: sizes, references of manifests, content in use or pinned, and reservations.

It is rebuilt from the rows at start, and answers without SQLite, so that a hit needs no query for its size.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Set

from ..oci.digest import Digest

BLOCK = 4096
"""Bytes of a file system block: the cap limits bytes on disk, where a file takes whole blocks."""

MAX_CLOSURE = 20_000
"""Digests that are followed for one image: an index of 20 platforms with 100 layers each has some 2,000."""


class Usage:
    """Bytes used, in whole blocks: `used` is the bytes on disk plus those reserved for content that is being staged.

    Besides stored content, the bytes on disk include quarantined content, and removed content that a reader still has
    open.
    """

    def __init__(self) -> None:
        self.sizes: dict[Digest, int] = {}
        self.children: dict[Digest, tuple[Digest, ...]] = {}
        """The digests that each stored manifest refers to; a key of this is a manifest, any other content a blob."""
        self.in_use: Counter[Digest] = Counter()
        """How many readers content has."""
        self.pinned: frozenset[Digest] = frozenset()
        self.held: Counter[Digest] = Counter()
        """Content that commands of the operator store at present, and how many do: it is admitted however rarely it is
        requested, and stays until the command has ended."""
        self.stored = 0
        self.reserved = 0
        self.quarantined = 0
        self._removed_in_use: Counter[Digest] = Counter()
        """Bytes of removed files that may still be open, by digest."""
        self.version = 0
        """Changes whenever the stored content changes, so that results derived from it can be cached until then."""

    @property
    def on_disk(self) -> int:
        """Bytes on disk: stored, quarantined, and removed but still open."""
        return self.stored + self.quarantined + self._removed_in_use.total()

    @property
    def used(self) -> int:
        """Bytes on disk and reserved."""
        return self.on_disk + self.reserved

    def add(self, digest: Digest, size: int, children: tuple[Digest, ...] | None = None) -> None:
        """Count content that was stored; `children` is not None for a manifest."""
        self.version += 1
        self.stored += size_on_disk(size) - size_on_disk(self.sizes.get(digest, 0))
        self.sizes[digest] = size
        if children is not None:
            self.children[digest] = children

    def remove(self, digest: Digest) -> None:
        """Count content as removed; its bytes count until no reader has its file open."""
        self.version += 1
        size = size_on_disk(self.sizes.pop(digest, 0))
        self.stored -= size
        self.children.pop(digest, None)
        self.add_removed(digest, size)

    def add_removed(self, digest: Digest, size: int) -> None:
        """Count a removed file of `size` bytes while content of its digest is being read: a reader may have this file
        open."""
        if digest in self.in_use:
            self._removed_in_use[digest] += size

    def restore(self, sizes: dict[Digest, int], children: dict[Digest, tuple[Digest, ...]]) -> None:
        """Replace the account of stored content; reservations do not change."""
        self.version += 1
        self.sizes, self.children = sizes, children
        self.stored = sum(map(size_on_disk, sizes.values()))

    def begin_reading(self, digest: Digest) -> None:
        """Protect content from eviction until `end_reading` is called as often as this."""
        self.in_use[digest] += 1

    def end_reading(self, digest: Digest) -> None:
        """Undo one `begin_reading`."""
        self.in_use[digest] -= 1
        if self.in_use[digest] <= 0:
            del self.in_use[digest]
            del self._removed_in_use[digest]

    def hold(self, digest: Digest) -> None:
        """Hold content, see `held`, until `release` is called as often as this."""
        self.held[digest] += 1

    def release(self, digest: Digest) -> None:
        """Undo one `hold`."""
        self.held[digest] -= 1
        if self.held[digest] <= 0:
            del self.held[digest]

    def is_protected(self, digest: Digest) -> bool:
        """Whether content must not be evicted: it is being read, pinned or held."""
        return digest in self.in_use or digest in self.pinned or digest in self.held

    @property
    def protected(self) -> int:
        """Bytes that no eviction frees: stored and not to be evicted, reserved, quarantined, removed but still open."""
        digests = self.pinned | self.in_use.keys() | self.held.keys()
        stored = sum(size_on_disk(self.sizes[digest]) for digest in digests if digest in self.sizes)
        return self.used - self.stored + stored

    def closure(
        self, roots: Iterable[Digest], referrers: Mapping[Digest, Set[Digest]] | None = None
    ) -> frozenset[Digest]:
        """Return these manifests, all content that they refer to at any depth (as far as the manifests are stored), and
        by `referrers` the content that refers to any of it (signatures, attestations). At most `MAX_CLOSURE` digests,
        the nearest first, each visited once.
        """
        return closure(self.children, roots, referrers)


def closure(
    children: Mapping[Digest, tuple[Digest, ...]],
    roots: Iterable[Digest],
    referrers: Mapping[Digest, Set[Digest]] | None = None,
) -> frozenset[Digest]:
    """Do what `Usage.closure` does, with these `children` of manifests."""
    found: set[Digest] = set()
    pending = deque(roots)
    while pending and len(found) < MAX_CLOSURE:
        digest = pending.popleft()
        if digest not in found:
            found.add(digest)
            pending.extend(children.get(digest, ()))
            pending.extend((referrers or {}).get(digest, ()))
    return frozenset(found)


def size_on_disk(size: int) -> int:
    """Return the bytes that a file of this size takes on disk."""
    return -(-size // BLOCK) * BLOCK
