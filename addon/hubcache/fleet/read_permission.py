"""Decides whether bytes from the bucket or another node may be given to a client of this node."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..oci.digest import Digest
from ..oci.errors import RegistryError, TooManyRequests, Unavailable
from .blob_read import BlobRead

type Permits = Callable[[str, str, Digest, bool], bool]
"""Whether every client may read a digest in a repository of a registry's host, without a request to the registry. The
last argument: whether the registry is down, so that an older answer of it counts."""


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether bytes from elsewhere may be used.

    `answered_at` is when the registry was asked about that, in seconds since the epoch; None when it was not asked.
    """

    is_given: bool
    answered_at: float | None = None


async def ask_permission(read: BlobRead, permits: Permits) -> Permission:
    """Return whether every client may read a public blob, or whether the registry permits the read now.

    A private blob is used only after the registry has accepted the client's own credentials. When the registry refuses,
    no permission is given: it is then asked by GET, and that answer counts, since some registries refuse HEAD only.
    """
    if read.is_public and permits(read.host, read.repository, read.digest, False):
        return Permission(True)
    asked_at = time.time()
    try:
        await read.check()
    except (Unavailable, TooManyRequests):
        return Permission(read.is_public and permits(read.host, read.repository, read.digest, True))
    except RegistryError:
        return Permission(False)
    return Permission(True, asked_at)
