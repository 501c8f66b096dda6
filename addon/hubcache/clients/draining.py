"""The connections of clients during an orderly stop: busy ones are served to the end, idle ones are closed.

A kept connection without a request may be closed at any time (RFC 9112 section 9.6), and clients of registries send
their next request on another one. An answer that begins during the stop carries `Connection: close`.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

QUIET_SECONDS = 2.0
"""A tunnel without traffic for this long is not in use, and a new client that is silent for this long is idle."""


class ClientState(Enum):
    """What a client's connection is doing."""

    IDLE = "no request is being answered"
    NEW = "it was opened a moment ago, and a request may be on its way"
    BUSY = "a request is being answered, part of an answer is not sent yet, or a tunnel is in use"


class ClientConnection(Protocol):
    """The connection of one client."""

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended, and nothing waits to be sent."""

    @property
    def state(self) -> ClientState:
        """What the connection is doing."""

    def close(self) -> None:
        """Close the connection once everything written is sent."""

    def abort(self) -> None:
        """Close the connection at once."""


class Draining(Protocol):
    """Connections that are closed during a stop."""

    @property
    def has_new(self) -> bool:
        """Whether a client had connected a moment before the last `close_idle`, and may still send a request."""

    def close_idle(self) -> int:
        """Begin or continue draining: close idle connections, and return the number of busy ones."""

    def abort(self) -> None:
        """Close all connections at once."""


class ClientGroup:
    """A set of connections that are drained together."""

    def __init__(self) -> None:
        self.clients: set[ClientConnection] = set()
        self.is_draining = False
        self.has_new = False

    def close_idle(self) -> int:
        """Close idle connections, and return the number of busy ones."""
        self.is_draining = True
        self.clients = {client for client in self.clients if not client.is_closed}
        states = {client: client.state for client in self.clients}
        for client, state in states.items():
            if state is ClientState.IDLE:
                client.close()
        self.has_new = ClientState.NEW in states.values()
        return list(states.values()).count(ClientState.BUSY)

    def abort(self) -> None:
        """Close all connections at once."""
        for client in list(self.clients):
            client.abort()


class ClientGroups:
    """Several groups that are drained as one."""

    def __init__(self, groups: Sequence[Draining]) -> None:
        self._groups = groups

    @property
    def has_new(self) -> bool:
        """Whether any group has new clients."""
        return any(group.has_new for group in self._groups)

    def close_idle(self) -> int:
        """Close idle connections of all groups, and return the number of busy ones."""
        return sum(group.close_idle() for group in self._groups)

    def abort(self) -> None:
        """Close all connections at once."""
        for group in self._groups:
            group.abort()
