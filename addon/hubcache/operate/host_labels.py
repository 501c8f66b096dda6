"""Hosts as labels of metrics: a registry names the hosts that its redirects lead to, and each label is kept."""

import time
from collections.abc import Callable

from cachetools import TTLCache

MAX_HOSTS = 64
"""Hosts that have a label of their own. A registry, its token service and its CDN make three."""

UNUSED_SECONDS = 3600.0
"""A host that was not asked for so long has its label no more."""

OTHER = "other"
"""The label of all hosts beyond `MAX_HOSTS`."""


class Hosts:
    """Who has a label; `forget` is called with a host that has it no more."""

    def __init__(self, forget: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._labels: TTLCache[str, None] = TTLCache(MAX_HOSTS, UNUSED_SECONDS, clock)
        self._forget = forget

    def label(self, host: str) -> str:
        """The label of a host that is asked."""
        self.expire()
        if host not in self._labels and len(self._labels) >= MAX_HOSTS:
            return OTHER
        self._labels[host] = None
        return host

    def known(self, host: str) -> str:
        """The label of a host that is only told of."""
        return host if host in self._labels or len(self._labels) < MAX_HOSTS else OTHER

    def expire(self) -> None:
        """Forget hosts that were not asked for long."""
        for host, _ in self._labels.expire():
            self._forget(host)
