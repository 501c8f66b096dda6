"""Decides which requests belong to one pull: popularity counts pulls, of which each takes several requests."""

import time
from collections.abc import Callable, Hashable
from hashlib import blake2b

from cachetools import TTLCache

SAME_PULL_SECONDS = 10.0
"""Requests of one client for the same content within this time (HEAD then GET, a resumed range, a retry) are one pull.
The time runs from the first request: of many machines behind one address some are always asking, and they make many
pulls."""

MAX_CLIENTS = 50_000
"""Pairs of client and content that are kept; beyond them the oldest are dropped, and some pulls count twice."""


class PullCounter:
    """Remembers for a short time which client requested which content.

    Keys are kept as hashes, since clients choose parts of them (`User-Agent`), which may be of any length.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._recent: TTLCache[bytes, None] = TTLCache(MAX_CLIENTS, SAME_PULL_SECONDS, clock)

    def is_new_pull(self, *client_and_content: Hashable) -> bool:
        """Whether this request is not part of a pull that was counted; later requests of that pull are not new."""
        key = blake2b(repr(client_and_content).encode(errors="surrogateescape"), digest_size=16).digest()
        if key in self._recent:
            return False
        self._recent[key] = None
        return True
