"""Bounds the number of hosts that are labels of metrics, since a registry chooses the hosts of its redirects."""

import time
from collections.abc import Callable

from cachetools import TTLCache

MAX_HOSTS = 64
"""Maximum number of hosts with a label of their own. A registry, its token service and its CDN need three."""

UNUSED_SECONDS = 3600.0
"""A host loses its label when it received no request for this time."""

OTHER = "other"
"""The label that all other hosts share."""


class Hosts:
    """The hosts that have a label; `forget` is called with each host that loses it."""

    def __init__(self, forget: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._labels: TTLCache[str, None] = TTLCache(MAX_HOSTS, UNUSED_SECONDS, clock)
        self._forget = forget

    def label(self, host: str) -> str:
        """Return the label of a host to which a request is sent: its own name if fewer than `MAX_HOSTS` hosts have a
        label."""
        self.expire()
        if host not in self._labels and len(self._labels) >= MAX_HOSTS:
            return OTHER
        self._labels[host] = None
        return host

    def existing_label(self, host: str) -> str:
        """Return the label that a host has or would get, without giving it one."""
        return host if host in self._labels or len(self._labels) < MAX_HOSTS else OTHER

    def expire(self) -> None:
        """Remove the labels of hosts that received no request for `UNUSED_SECONDS`."""
        for host, _ in self._labels.expire():
            self._forget(host)
