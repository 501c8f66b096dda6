"""Makes the protocol of each client that is accepted: a direct connection, or none where mitmproxy is to serve it."""

import asyncio
from collections.abc import Callable

from ..mitm.streams import Server
from .connection import DirectConnection
from .dependencies import DirectDependencies
from .eligibility import Eligibility


class DirectAcceptor:
    """Makes direct connections for clients that `eligibility` permits. `dependencies` makes the parts that they share,
    anew when an option changes."""

    def __init__(self, eligibility: Eligibility, dependencies: Callable[[], DirectDependencies]) -> None:
        self._eligibility = eligibility
        self._make_dependencies = dependencies
        self._dependencies: DirectDependencies | None = None

    def options_changed(self) -> None:
        """Use new dependencies for the next client."""
        self._dependencies = None

    def protocol(self, server: Server, client: tuple[str, int]) -> asyncio.Protocol | None:
        """Return the protocol for a client at an address; None where mitmproxy is to serve it."""
        if not self._eligibility.is_direct(server.mode, client[0]):
            return None
        if self._dependencies is None:
            self._dependencies = self._make_dependencies()
        if not self._dependencies.limits.admits(client[0]):
            return _Refusal()
        return DirectConnection(self._dependencies, server, client)


class _Refusal(asyncio.Protocol):
    """A protocol that closes its connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
