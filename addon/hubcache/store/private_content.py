"""Private content: digests that were fetched with a client's own credentials, and the registries that gave them."""

from collections.abc import Callable, Iterable

from cachetools import LRUCache

from ..decide.records import Link, Visibility, decode_hosts, encode_hosts
from ..oci.digest import Digest
from ..oci.errors import StorageError
from . import fact_rows
from .fact_rows import decode_or
from .index_access import IndexAccess
from .links import UNCONFIRMED

MAX_NOT_PRIVATE = 20_000
"""Digests that are known not to be private, and need no query of the index."""

_NOT_PUBLIC = Visibility(False, 0.0)


class PrivateContent:
    """The private digests, in rows that outlive the content: it may be stored again at any moment, and must never be
    public."""

    def __init__(self, index: IndexAccess) -> None:
        self._index = index
        self._not_private: LRUCache[Digest, None] = LRUCache(MAX_NOT_PRIVATE)

    def has(self, digest: Digest) -> bool:
        """Whether content was fetched with a client's own credentials, so that other clients may not be allowed it."""
        return self.sources(digest) is not None

    def sources(self, digest: Digest) -> frozenset[str] | None:
        """Return the registries that gave the bytes of private content; None when the content is not private.

        Every request for content calls this, so that negative answers are kept in memory. When the index cannot be
        read, the content counts as private and of no registry.
        """
        if self._index.current is None or digest in self._not_private:
            return None
        try:
            value = self._index.current.get(f"private/{digest}")
        except StorageError as error:
            self._index.note_failure(error)
            return frozenset()
        if isinstance(value, str):
            return decode_or(decode_hosts, value, frozenset())
        self._not_private[digest] = None
        return None

    async def add(self, digest: Digest, *registries: str) -> None:
        """Store that content is private, and that these registries gave its bytes. Without registries, the content only
        counts as private for a limited time: a client is about to fetch it with its own credentials.
        """
        index, key = self._index.opened(), f"private/{digest}"

        def write() -> None:
            before = index.get(key)
            known = decode_or(decode_hosts, before, frozenset())
            if registries:
                index.set(key, encode_hosts(known | {*registries}), fact_rows.FACT_LIFETIME)
            elif before is None:
                index.set(key, encode_hosts(known), fact_rows.TENTATIVE_LIFETIME)

        await self._write(write)

    async def add_repository(self, registry: str, repository: str, only: Digest | None = None) -> None:
        """Mark the content of a repository as private, because the repository turned private. With `only`, mark that
        digest alone: the registry answered 404 for it, as some registries do when a repository turns private.

        Content that another public repository of the registry is confirmed to have stays public. The sources of content
        that becomes private are the registries that gave the bytes, as far as they are known.
        """
        index, own_name = self._index.opened(), f"{registry}/{repository}"

        def write() -> None:
            rows = (
                (key.removeprefix("repository/"), value) for key, value, _, _ in index.rows(f"repository/{registry}/")
            )
            public = {name for name, value in rows if decode_or(Visibility.decode, value, _NOT_PUBLIC).public}
            own: set[str] = set()
            shared: set[str] = set()
            sources: dict[str, set[str]] = {}
            for key, value, _, _ in index.rows("link/"):
                name, _, digest = key.removeprefix("link/").partition("@")
                link = decode_or(Link.decode, value, UNCONFIRMED)
                if name == own_name:
                    if only is None or digest == str(only):
                        own.add(digest)
                elif name in public and link.confirmed:
                    shared.add(digest)
                if link.given:
                    sources.setdefault(digest, set()).add(name.partition("/")[0])
            private: dict[str, object] = {
                f"private/{digest}": encode_hosts(frozenset(sources.get(digest, ()))) for digest in own - shared
            }
            private |= index.get_many(private)
            index.set_many(private, fact_rows.FACT_LIFETIME)

        await self._write(write)

    async def forget(self, digests: Iterable[Digest]) -> None:
        """Forget which registries gave private content that was removed.

        It counts as private for a limited time nevertheless: a client may be about to store it again.
        """
        index, keys = self._index.opened(), [f"private/{digest}" for digest in digests]

        def write() -> None:
            known = index.get_many(keys)
            index.write_batches(dict.fromkeys(known, encode_hosts(frozenset())), fact_rows.TENTATIVE_LIFETIME)

        await self._write(write)

    def clear_cache(self) -> None:
        """Forget the negative answers, because another index may have been opened."""
        self._not_private.clear()

    async def _write(self, write: Callable[[], None]) -> None:
        """Run `write`, and drop the negative answers, including those that are read during the write."""
        self._not_private.clear()
        try:
            await self._index.write(write)
        finally:
            self._not_private.clear()
