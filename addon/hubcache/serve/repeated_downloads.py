"""A client that asks again for a whole blob that it has just been sent: what it does when the digest was wrong."""

import time
from collections.abc import Callable

from cachetools import TTLCache

from ..oci.digest import Digest
from .messages import Request

SECONDS = 60.0
"""Clients that find a wrong digest try again within seconds; the next job of a build machine comes later."""

_REMEMBERED = 50_000


class RepeatedDownloads:
    """What was sent whole to whom: an address and a `User-Agent`, of which only a hash is kept.

    A client that was still being sent the blob, or that asks for a part of it, raises no suspicion; nor does one
    without an address. Many machines behind one address do, one after the other: see `inspector.SUSPECT_SECONDS`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._sent: TTLCache[int, None] = TTLCache(_REMEMBERED, SECONDS, clock)

    def record_sent(self, request: Request, digest: Digest) -> None:
        """A whole blob from the store was sent, or as much of it as the client wanted."""
        self._sent[_key(request, digest)] = None

    def is_repeat(self, request: Request, digest: Digest) -> bool:
        """Whether this request for a whole blob gives reason to doubt what is stored."""
        return bool(request.client) and _key(request, digest) in self._sent


def _key(request: Request, digest: Digest) -> int:
    return hash((request.client, request.headers.get("user-agent"), digest))
