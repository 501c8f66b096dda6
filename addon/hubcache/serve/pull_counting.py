"""Which requests are one pull: popularity counts pulls, not the requests that a client makes of one."""

import time
from collections.abc import Callable, Hashable
from hashlib import blake2b

from cachetools import TTLCache

SAME_PULL_SECONDS = 10.0
"""A client that asks again for the same within this time (HEAD then GET, a resumed range, a retry) makes one pull. From
the first request on: many machines behind one address, of which there is always one that asks, are many pulls."""

MAX_CLIENTS = 50_000
"""Pairs of client and content that are kept; beyond them the oldest are forgotten, and some pulls count twice."""


class PullCounter:
    """Remembers who asked for what a moment ago, as hashes: clients write what they are (`User-Agent`)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._begun: TTLCache[bytes, None] = TTLCache(MAX_CLIENTS, SAME_PULL_SECONDS, clock)

    def is_new_pull(self, *who_and_what: Hashable) -> bool:
        """Whether this request is not part of a pull that was counted already. Of what a client says of itself, which
        may be long, a hash is kept."""
        key = blake2b(repr(who_and_what).encode(errors="surrogateescape"), digest_size=16).digest()
        if key in self._begun:
            return False
        self._begun[key] = None
        return True
