"""Links: which digests are known to belong to which repositories."""

from collections.abc import Iterable, Mapping

from ..decide.records import Link
from ..oci.digest import Digest
from . import fact_rows
from .fact_rows import decode_or
from .index_access import IndexAccess

UNCONFIRMED = Link(None, confirmed=False)
"""The link that is assumed where a row cannot be read: the registry confirmed nothing."""

_MAX_LOOKUPS = 16
"""Number of links that are looked up on the caller's thread before a write. The writer thread looks up larger numbers:
each lookup takes some 12 microseconds."""


class Links:
    """The links, in rows by registry, repository and digest."""

    def __init__(self, index: IndexAccess) -> None:
        self._index = index

    def get(self, registry: str, repository: str, digest: Digest) -> Link | None:
        """Return the link between a digest and a repository, if one is known."""
        return decode_or(Link.decode, self._index.read(_key(registry, repository, digest)), None)

    async def put(
        self,
        registry: str,
        repository: str,
        links: Mapping[Digest, int | None],
        *,
        confirmed: bool = True,
        given: bool = False,
    ) -> None:
        """Store that digests (with their sizes where known) belong to a repository; links that add nothing to the
        stored ones are not written.

        A stored size is kept when the new one is unknown. That the registry confirmed a link (`confirmed`) or gave the
        bytes (`given`) is kept when later only a manifest lists the digest.
        """
        index = self._index.opened()
        if len(links) <= _MAX_LOOKUPS:
            known = {digest: self.get(registry, repository, digest) for digest in links}
            links = {digest: size for digest, size in links.items() if _adds(known[digest], confirmed, given)}
        if not links:
            return
        sizes = {_key(registry, repository, digest): size for digest, size in links.items()}

        def write() -> None:
            rows: dict[str, object] = {}
            stored = index.get_many(sizes)
            for key, size in sizes.items():
                before = decode_or(Link.decode, stored.get(key), None)
                if _adds(before, confirmed, given):
                    old = before or UNCONFIRMED
                    new_size = old.size if size is None else size
                    rows[key] = Link(new_size, confirmed or old.confirmed, given or old.given).encode()
            if rows:
                index.set_many(rows, fact_rows.FACT_LIFETIME)

        await self._index.write(write)

    async def drop(self, registry: str, repository: str, digest: Digest) -> None:
        """Delete a link: the digest does not belong to the repository, or no longer."""
        index = self._index.opened()
        await self._index.write(lambda: index.delete(_key(registry, repository, digest)))

    async def drop_all(self, registry: str, repository: str, digests: Iterable[Digest]) -> None:
        """Delete the links of these digests to a repository."""
        index, keys = self._index.opened(), [_key(registry, repository, digest) for digest in digests]
        await self._index.write(lambda: index.write_batches({}, deleted=keys))


def _key(registry: str, repository: str, digest: Digest) -> str:
    return f"link/{registry}/{repository}@{digest}"


def _adds(known: Link | None, confirmed: bool, given: bool) -> bool:
    """Whether a link with these properties adds something to the known one."""
    return known is None or (confirmed and not known.confirmed) or (given and not known.given)
