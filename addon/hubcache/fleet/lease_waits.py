"""Waits until another node has released a lease, by one request to that node instead of many to the bucket."""

import asyncio
from typing import Protocol

from .leaders import Leaders
from .leases import Holder, Leases
from .peer_client import PeerUnavailable


class Peers(Protocol):
    """Sends requests to other nodes."""

    async def wait_released(self, address: str, name: str) -> bool:
        """Return True once the node at `address` has released a lease, False if it does not hold it.

        Raises `PeerUnavailable`.
        """


class LeaseWaits:
    """The waits of one node."""

    def __init__(self, leases: Leases, peers: Peers, leaders: Leaders) -> None:
        self._leases = leases
        self._peers = peers
        self._leaders = leaders

    async def wait(self, name: str, holder: Holder, seconds: float) -> bool | None:
        """Wait up to `seconds` until the holder of a lease has released it; returns whether it has.

        Returns None when the holder does not answer. False may also mean that it has released the lease before, or that
        it is of an older version.
        """
        try:
            async with asyncio.timeout(seconds):
                if self._leases.is_own(holder):
                    return await self._leases.wait_released(name)
                if not holder.address or self._leaders.is_avoided(holder.node):
                    return None
                return await self._peers.wait_released(holder.address, name)
        except PeerUnavailable:
            self._leaders.avoid(holder.node)
            return None
        except TimeoutError:
            return None
