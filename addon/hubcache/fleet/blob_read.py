"""A read of a blob, as the upstream of its registry does it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ..oci.digest import Digest
from ..transfer.blob_body import BlobBody, BlobDownload


@dataclass(frozen=True, slots=True)
class BlobRead:
    """A blob that a client reads from a repository of a registry's `host`, and how the registry is asked for it."""

    host: str
    repository: str
    digest: Digest
    is_public: bool
    """Whether the blob is read as the public reads it; credentials then only count the pull. Otherwise it is read with
    a client's own credentials, and is private."""
    authorization: str | None
    """The credentials with which access is checked: None for a public read, else the client's own."""
    check: Callable[[], Awaitable[object]]
    """Asks the registry by HEAD whether the blob may be read: anonymously for a public read, else with the client's
    credentials. Raises `RegistryError`."""
    download: Callable[[int], AbstractAsyncContextManager[BlobDownload]]
    """Opens the registry's blob from a byte to its end, to be received in a thread."""
    open: Callable[[int, int | None], AbstractAsyncContextManager[BlobBody]]
    """Opens the registry's blob from a byte to before another (None: to its end)."""

    @property
    def access(self) -> tuple[str, str, bool, str | None]:
        """What a permission to read the blob applies to."""
        return self.host, self.repository, self.is_public, self.authorization
