"""Detects a client that downloads a whole blob again right after it was sent, as clients do for a wrong digest."""

import time
from collections.abc import Callable

from cachetools import TTLCache

from ..oci.digest import Digest
from .messages import Request

SECONDS = 60.0
"""Clients that find a wrong digest try again within seconds; the next job of a build machine comes later."""

_MAX_DOWNLOADS = 50_000


class RepeatedDownloads:
    """Remembers which whole blobs were sent to which client: an address and a `User-Agent`, kept as a hash.

    A request is not a repeat if the client is still receiving the blob, if it is for a part of the blob, or if the
    client has no address. Many machines behind one address look like one client that repeats: see
    `inspector.SUSPECT_SECONDS`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._sent: TTLCache[int, None] = TTLCache(_MAX_DOWNLOADS, SECONDS, clock)

    def record_sent(self, request: Request, digest: Digest) -> None:
        """Record that a whole blob was sent from the store, or a part of it until the client disconnected."""
        self._sent[_key(request, digest)] = None

    def is_repeat(self, request: Request, digest: Digest) -> bool:
        """Whether this request for a whole blob gives reason to doubt the stored file."""
        return bool(request.client) and _key(request, digest) in self._sent


def _key(request: Request, digest: Digest) -> int:
    return hash((request.client, request.headers.get("user-agent"), digest))
