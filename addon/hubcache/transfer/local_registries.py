"""Remembers which registries have a local address themselves, and so may name other local addresses."""

import asyncio
import socket

from cachetools import LRUCache
from yarl import URL

from ..oci.address import is_local_address

_MAX_REGISTRIES = 1000


class LocalRegistries:
    """Resolves each registry's host once: a DNS answer that changes later must not permit local addresses."""

    def __init__(self) -> None:
        self._known: LRUCache[str, bool] = LRUCache(_MAX_REGISTRIES)

    async def is_local(self, registry: URL) -> bool:
        """Whether a registry has a local address; False where its name cannot be resolved."""
        host = registry.host or ""
        known = self._known.get(host)
        if known is None:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(host, registry.port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                return False
            known = self._known[host] = any(is_local_address(str(address[0])) for *_, address in found)
        return known
