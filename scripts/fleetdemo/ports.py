"""Free ports of this machine."""

import itertools
import random
import socket
from collections.abc import Iterable

_SERVICE_PORTS = range(10_000, 12_000)
"""Ports that no user needs to know; below those that Linux gives to outgoing connections."""


class Ports:
    """Finds ports of 127.0.0.1 that nothing listens on, each once."""

    def __init__(self) -> None:
        self._used: set[int] = set()

    def from_(self, first: int) -> int:
        """Return the lowest free port that is not below `first`."""
        return self._find(itertools.count(first))

    def any(self) -> int:
        """Return any free port."""
        return self._find(random.sample(_SERVICE_PORTS, len(_SERVICE_PORTS)))

    def _find(self, candidates: Iterable[int]) -> int:
        for port in candidates:
            if port not in self._used and _is_free(port):
                self._used.add(port)
                return port
        raise OSError("no port is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
