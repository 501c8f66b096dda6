"""Who may connect to the doors, and how many connections there are: those that wait for their client to say something
are closed, the oldest first, before the process runs out of descriptors.

A client that says nothing costs as much as one that does, and anybody can open thousands of connections. A process
counts its own; each worker has descriptors of its own.
"""

import logging
import resource
import time
from collections import Counter
from typing import Protocol

from ..decide.throttle import Throttle
from ..oci.address import parse_address
from ..operate.option_values import Network

logger = logging.getLogger("hubcache")

_MOST = 1 << 16
"""Connections are counted as if there were no more descriptors than this, where the system permits a million: what
half of them hold in memory is some hundred MB."""
_LEAST_SHARE = 256
"""Connections that an address has at least: many machines may be behind one."""
_AT_ONCE = 100
"""Connections that are closed in a row at most: it takes a millisecond."""
_SAY_SECONDS = 60.0


class Connection(Protocol):
    """What speaks with a client."""

    def dismiss(self) -> None:
        """End the connection, which waits for its client."""


class ClientLimits:
    """`networks` are those whose clients are served, all where there are none; `descriptors` is how many the process
    may have."""

    networks: tuple[Network, ...] = ()

    def __init__(self, descriptors: int | None = None) -> None:
        self.measure(descriptors)
        self._places: dict[Connection, str] = {}
        self._counts: Counter[str] = Counter()
        self._waiting: dict[Connection, None] = {}
        """The oldest first, as in these by place."""
        self._waiting_at: dict[str, dict[Connection, None]] = {}
        self._throttle = Throttle(_SAY_SECONDS, time.monotonic)

    def measure(self, descriptors: int | None = None) -> None:
        """Go by so many descriptors, or by what the system permits at present."""
        if descriptors is None:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            descriptors = _MOST if limit == resource.RLIM_INFINITY else limit
        self._high = min(descriptors, _MOST) * 4 // 5
        self._batch = max(1, min(self._high // 16, _AT_ONCE))
        """How many are closed when descriptors run short. The next clients get the numbers of those that were closed,
        and tell nothing: with one at a time, the highest number would go up by one with each second client."""
        self.share = max(_LEAST_SHARE, min(descriptors, _MOST) // 4)
        """Connections of one address at most."""

    def admits(self, address: str) -> bool:
        """Whether a client of that address may use the doors."""
        if not self.networks:
            return True
        found = parse_address(address)
        if any(found in network for network in self.networks):
            return True
        if self._throttle.permits("turned away"):
            logger.warning("hubcache: clients that are not in hubcache_clients are turned away, such as %s", address)
        return False

    def make_room(self, descriptor: int) -> None:
        """A socket was accepted, with that number. The system gives the lowest that is free, so at least as many are in
        use, whatever for: close connections that wait where that is too many."""
        if descriptor >= self._high:
            for _ in range(self._batch):
                self.relieve()

    def enter(self, connection: Connection, address: str) -> bool:
        """A new connection, which waits for its client; false where the address has too many that are busy."""
        place = _place(address)
        if self._counts[place] >= self.share and not self._dismiss(self._waiting_at.get(place)):
            return False
        self._places[connection] = place
        self._counts[place] += 1
        self.wait(connection)
        return True

    def wait(self, connection: Connection) -> None:
        """It waits for its client, from now on."""
        place = self._places.get(connection)
        if place is None:
            return
        self.work(connection)
        self._waiting[connection] = None
        self._waiting_at.setdefault(place, {})[connection] = None

    def work(self, connection: Connection) -> None:
        """It waits no more: its client has asked for something."""
        if connection in self._waiting:
            del self._waiting[connection]
            waiting = self._waiting_at[self._places[connection]]
            del waiting[connection]
            if not waiting:
                del self._waiting_at[self._places[connection]]

    def leave(self, connection: Connection) -> None:
        """It has ended, or is somebody else's."""
        self.work(connection)
        place = self._places.pop(connection, None)
        if place is not None:
            self._counts[place] -= 1
            if not self._counts[place]:
                del self._counts[place]

    def relieve(self) -> bool:
        """Close the connection that waits longest; false where none does."""
        return self._dismiss(self._waiting)

    def _dismiss(self, waiting: dict[Connection, None] | None) -> bool:
        if not waiting:
            return False
        oldest = next(iter(waiting))
        self.leave(oldest)
        oldest.dismiss()
        return True


def _place(address: str) -> str:
    """An IPv6 client has as many addresses as it likes in its /64."""
    found = parse_address(address)
    return found.packed[:8].hex() if found.version == 6 else str(found)
