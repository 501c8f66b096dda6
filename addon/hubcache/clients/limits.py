"""Limits who may connect and how many connections there are.

A silent client costs as much as a busy one, and anybody can open thousands of connections. Before the process runs out
of descriptors, connections that wait for their client are closed, the oldest first. Each process counts its own
connections: a worker has descriptors of its own.
"""

import logging
import resource
import time
from collections import Counter
from functools import lru_cache
from typing import Protocol

from ..decide.throttle import Throttle
from ..oci.address import parse_address
from ..operate.option_values import Network

logger = logging.getLogger("hubcache")

REQUEST_SECONDS = 30.0
"""Seconds that a client has for CONNECT, TLS hello and its first request together, and for each further head once that
has begun. Received bytes do not extend it, or a few bytes would hold a connection for ever."""
_MAX_CONNECTIONS = 1 << 16
"""The number of descriptors to count with where the system permits more, such as a million: half of these connections
already hold some hundred MB of memory."""
_MIN_PER_ADDRESS = 256
"""Connections that one address may have in any case: many machines may share it."""
_MAX_BATCH = 100
"""Connections closed in a row at most, which takes a millisecond."""
_LOG_SECONDS = 60.0


class LimitedConnection(Protocol):
    """The connection of one client."""

    def disconnect(self) -> None:
        """Close the connection; called while it waits for its client."""


class ClientLimits:
    """The connections of one process.

    `networks` are those whose clients are served (empty: all); `descriptors` is the number of descriptors that the
    process may have (None: the system's limit).
    """

    networks: tuple[Network, ...] = ()

    def __init__(self, descriptors: int | None = None) -> None:
        self.set_descriptors(descriptors)
        self._addresses: dict[LimitedConnection, str] = {}
        self._counts: Counter[str] = Counter()
        self._idle: dict[LimitedConnection, None] = {}
        """Connections that wait for their client, the oldest first."""
        self._idle_of_address: dict[str, dict[LimitedConnection, None]] = {}
        self._throttle = Throttle(_LOG_SECONDS, time.monotonic)

    def set_descriptors(self, descriptors: int | None = None) -> None:
        """Derive the limits from a number of descriptors, or from the system's present limit."""
        if descriptors is None:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            descriptors = _MAX_CONNECTIONS if limit == resource.RLIM_INFINITY else limit
        self._max_descriptor = min(descriptors, _MAX_CONNECTIONS) * 4 // 5
        self._batch = max(1, min(self._max_descriptor // 16, _MAX_BATCH))
        """Connections closed at once when descriptors run short. The next clients get the numbers of the closed ones,
        so their numbers stay low: were connections closed one by one, the highest number would still grow by one with
        every second client."""
        self.max_per_address = max(_MIN_PER_ADDRESS, min(descriptors, _MAX_CONNECTIONS) // 4)
        """Connections that one address may have."""

    def admits(self, address: str) -> bool:
        """Whether a client of that address may connect."""
        if not self.networks:
            return True
        found = parse_address(address)
        if any(found in network for network in self.networks):
            return True
        if self._throttle.permits("turned away"):
            logger.warning("hubcache: clients that are not in hubcache_clients are refused, such as %s", address)
        return False

    def accepted(self, descriptor: int) -> None:
        """Close idle connections if descriptors run short, after a socket with this number was accepted.

        The system gives the lowest free number, so at least as many descriptors are in use, for whatever purpose.
        """
        if descriptor >= self._max_descriptor:
            for _ in range(self._batch):
                self.close_oldest()

    def add(self, connection: LimitedConnection, address: str) -> bool:
        """Count a new connection, which is idle; False where the address has too many that are busy."""
        key = _counted_address(address)
        if self._counts[key] >= self.max_per_address and not self._close_first(self._idle_of_address.get(key)):
            return False
        self._addresses[connection] = key
        self._counts[key] += 1
        self.mark_idle(connection)
        return True

    def mark_idle(self, connection: LimitedConnection) -> None:
        """Note that a connection waits for its client from now on; one that is not counted is ignored."""
        key = self._addresses.get(connection)
        if key is None:
            return
        self.mark_busy(connection)
        self._idle[connection] = None
        self._idle_of_address.setdefault(key, {})[connection] = None

    def mark_busy(self, connection: LimitedConnection) -> None:
        """Note that the client of a connection has sent a request."""
        if connection in self._idle:
            del self._idle[connection]
            idle = self._idle_of_address[self._addresses[connection]]
            del idle[connection]
            if not idle:
                del self._idle_of_address[self._addresses[connection]]

    def remove(self, connection: LimitedConnection) -> None:
        """Stop counting a connection: it has ended, or was handed over."""
        self.mark_busy(connection)
        key = self._addresses.pop(connection, None)
        if key is not None:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    def close_oldest(self) -> bool:
        """Close the connection that has been idle longest; False where none is idle."""
        return self._close_first(self._idle)

    def _close_first(self, idle: dict[LimitedConnection, None] | None) -> bool:
        if not idle:
            return False
        oldest = next(iter(idle))
        self.remove(oldest)
        oldest.disconnect()
        return True


@lru_cache(1 << 12)
def _counted_address(address: str) -> str:
    """Return the address or network that an address is counted for: an IPv6 client can use all addresses of its /64."""
    found = parse_address(address)
    return found.packed[:8].hex() if found.version == 6 else str(found)
