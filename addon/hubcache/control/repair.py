"""Fetches content again that was damaged or lost, from a repository that is known to have it."""

from collections.abc import Mapping

from ..decide.records import Link
from ..oci.digest import Digest
from ..oci.errors import (
    BlobUnknown,
    Denied,
    HubcacheError,
    ManifestUnknown,
    StorageError,
    TooManyRequests,
    Unauthorized,
)
from ..oci.image_name import ImageName
from ..serve.repository_view import RepositoryView
from .held_content import HeldContent
from .parts import Parts
from .registries import upstream_of

_MAX_ATTEMPTS = 5
"""Repositories that are asked for the same content."""

_REFUSALS = (BlobUnknown, ManifestUnknown, Unauthorized, Denied)


class NotRepairable(HubcacheError):
    """Content that cannot be fetched again; the message is the reason. `is_final`: another attempt would be in vain."""

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


class Repair:
    """Fetches content as a client without credentials would: anonymously, or with the configured account once the
    registry confirms that the public may read it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def fetch(self, digest: Digest, repositories: Mapping[tuple[str, str], Link], *, is_manifest: bool) -> None:
        """Store content again from one of these repositories (registry and name); those come first whose registry
        delivered the bytes, or confirmed that it has them. Raises `NotRepairable`.
        """
        if self._parts.store.private.has(digest):
            raise NotRepairable(
                "it is private: only a client with access can fetch it, which happens at its next request",
                is_final=True,
            )
        if not repositories:
            reason = "no repository is known to have it; it is fetched again when a client requests it"
            raise NotRepairable(reason, is_final=True)
        ranked = sorted(repositories, key=lambda name: (repositories[name].given, repositories[name].confirmed))
        reasons, is_final = [], True
        for registry, repository in ranked[::-1][:_MAX_ATTEMPTS]:
            try:
                await self._fetch_from(ImageName(registry, repository, digest), digest, is_manifest)
            except TooManyRequests as error:
                raise NotRepairable(f"{registry}: {error}", is_final=False) from error
            except HubcacheError as error:
                reasons.append(f"{registry}/{repository}: {error}")
                is_final = is_final and isinstance(error, _REFUSALS)
            else:
                return
        raise NotRepairable("; ".join(reasons), is_final=is_final)

    async def _fetch_from(self, name: ImageName, digest: Digest, is_manifest: bool) -> None:
        held = HeldContent(self._parts.store)
        held.add(digest)  # it was stored, so that a full store must not refuse it
        try:
            with upstream_of(self._parts.upstreams, name) as upstream:
                view = RepositoryView(upstream, name.repository)
                if not is_manifest:
                    await self._parts.blobs.fetch(view, digest)
                    return
                found = await self._parts.manifests.by_digest(view, digest, head=False)
                if found.digest != digest:
                    raise ManifestUnknown("the registry has another manifest")
                if not self._parts.store.has(digest):
                    raise StorageError(self._parts.store.problem or "it could not be stored")
        finally:
            held.release()
