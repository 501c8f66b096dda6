"""Facts about registries and their repositories: visibility, authentication challenge, media types."""

from ..decide.records import Visibility
from ..oci.digest import Digest
from . import fact_rows
from .fact_rows import decode_or
from .index_access import IndexAccess


class RegistryFacts:
    """Facts about registries, in rows by registry host."""

    def __init__(self, index: IndexAccess) -> None:
        self._index = index

    def visibility(self, registry: str, repository: str) -> Visibility | None:
        """Return whether a repository was public when that was last checked."""
        return decode_or(Visibility.decode, self._index.read(f"repository/{registry}/{repository}"), None)

    async def put_visibility(self, registry: str, repository: str, visibility: Visibility) -> None:
        """Store whether a repository is public."""
        index, key = self._index.opened(), f"repository/{registry}/{repository}"
        await self._index.write(lambda: index.set(key, visibility.encode(), fact_rows.FACT_LIFETIME))

    def challenge(self, registry: str) -> str | None:
        """Return the registry's last authentication challenge."""
        value = self._index.read(f"challenge/{registry}")
        return value if isinstance(value, str) else None

    async def put_challenge(self, registry: str, challenge: str, *, expires: bool = False) -> None:
        """Store a registry's authentication challenge, without an end to its lifetime unless it `expires`: that of a
        registry that a client named does, since clients can name any number."""
        index, lifetime = self._index.opened(), fact_rows.FACT_LIFETIME if expires else None
        if self.challenge(registry) != challenge:
            await self._index.write(lambda: index.set(f"challenge/{registry}", challenge, lifetime))

    def media_type(self, registry: str, digest: Digest) -> str | None:
        """Return the media type that a registry gives a manifest whose body does not contain one."""
        value = self._index.read(f"type/{registry}@{digest}")
        return value if isinstance(value, str) else None

    async def put_media_type(self, registry: str, digest: Digest, media_type: str) -> None:
        """Store the media type that a registry gives a manifest."""
        index, key = self._index.opened(), f"type/{registry}@{digest}"
        await self._index.write(lambda: index.set(key, media_type, fact_rows.FACT_LIFETIME))
