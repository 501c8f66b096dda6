"""Names of repositories for the status: which a reader may see, and through which repository content was requested."""

from cachetools import LRUCache

from ..oci.digest import Digest
from ..oci.errors import DigestInvalid
from ..oci.image_name import short_name
from ..store.store import Store
from .served_request import ServedRequest

MAX_DIGESTS = 10_000
"""Digests whose repositories are remembered: a removal names only a digest."""


class RepositoryNames:
    """The repositories through which content was requested last."""

    def __init__(self) -> None:
        self._repositories: LRUCache[Digest, tuple[str, str]] = LRUCache(MAX_DIGESTS)

    def add(self, request: ServedRequest) -> None:
        """Remember the repository of the content that a client received."""
        if request.repository and request.status < 400 and request.reference.startswith("sha256:"):
            try:
                self._repositories[Digest.parse(request.reference)] = (request.registry, request.repository)
            except DigestInvalid:
                return

    def of(self, digest: Digest) -> tuple[str, str] | None:
        """Return registry and repository of content, if they are known."""
        return self._repositories.get(digest)


class Reader:
    """A reader of the status. A `public` one sees only the names of repositories that anonymous clients may read."""

    def __init__(self, store: Store, *, public: bool) -> None:
        self.is_public = public
        self._store = store
        self._known: dict[tuple[str, str], bool] = {}

    def may_see(self, registry: str, repository: str) -> bool:
        """Whether the reader may see the name of this repository."""
        if not self.is_public:
            return True
        key = (registry, repository)
        if key not in self._known:
            visibility = self._store.registries.visibility(registry, repository)
            self._known[key] = visibility is not None and visibility.public
        return self._known[key]

    def name(self, registry: str, repository: str) -> str | None:
        """Return the name of a repository as users write it; None if the reader may not see it."""
        return short_name(registry, repository) if self.may_see(registry, repository) else None
