"""Which registries are at an address of this machine or its link themselves, and so may name others there."""

import asyncio
import socket

from cachetools import LRUCache
from yarl import URL

from ..oci.address import is_local_address

_MAX_HOMES = 1000


class LocalRegistries:
    """Registries' own hosts, resolved once: a name that changes must not open what it did not at first."""

    def __init__(self) -> None:
        self._local: LRUCache[str, bool] = LRUCache(_MAX_HOMES)

    async def is_local(self, home: URL) -> bool:
        """Whether a registry is there; not where its name cannot be resolved."""
        host = home.host or ""
        known = self._local.get(host)
        if known is None:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(host, home.port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                return False
            known = self._local[host] = any(is_local_address(str(address[0])) for *_, address in found)
        return known
