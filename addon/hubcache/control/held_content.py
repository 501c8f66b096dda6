"""Content that a command of the operator stores, or needs, while it runs."""

from collections.abc import Iterable

from ..oci.digest import Digest
from ..store.store import Store


class HeldContent:
    """Content that a full store admits however rarely it was requested, and that is not evicted until `release`.

    The operator asked for it, which says more than a number of requests. Afterwards it counts as requested as often as
    a full store demands of new content, and is evicted like any other: content that clients do not request should not
    occupy the store for ever. Pins are for content that must stay.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: set[Digest] = set()

    def add(self, *digests: Digest) -> list[Digest]:
        """Hold more content, which may not be stored yet, and have it admitted; return what was not held before."""
        new = self.keep(*digests)
        for digest in new:
            self._store.popularity.ensure_admitted(digest)
        return new

    def keep(self, *digests: Digest) -> list[Digest]:
        """Hold content that is stored; return what was not held before."""
        new = [digest for digest in dict.fromkeys(digests) if digest not in self._held]
        for digest in new:
            self._held.add(digest)
            self._store.usage.hold(digest)
        return new

    def release(self, digests: Iterable[Digest] | None = None) -> None:
        """Stop holding this content, by default all."""
        for digest in tuple(self._held if digests is None else digests):
            if digest in self._held:
                self._held.discard(digest)
                self._store.usage.release(digest)
