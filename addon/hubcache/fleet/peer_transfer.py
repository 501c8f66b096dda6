"""The bytes of a blob that another node sends while it fetches them."""

from collections.abc import Awaitable, Callable

from ..oci.errors import Unavailable
from ..transfer.download_response import Consume
from .peer_client import STALL_SECONDS, PeerBody
from .shared_fill import SharedFill


class PeerTransfer:
    """A `Transfer` from the node that holds the lease. When nothing arrives, it goes on waiting while the lease is
    renewed: that node may wait for a slow registry."""

    def __init__(self, body: PeerBody, fill: SharedFill, is_renewed: Callable[[], Awaitable[bool]]) -> None:
        self._body = body
        self._fill = fill
        self._is_renewed = is_renewed

    async def receive(self, consume: Consume) -> bool:
        """See `Transfer.receive`; raises `Unavailable` when the lease has expired, or after too long a wait."""
        arrived = 0

        def count(data: memoryview) -> bool:
            nonlocal arrived
            arrived += len(data)
            return consume(data)

        while True:
            before = arrived
            try:
                return await self._body.receive(count)
            except TimeoutError as error:
                self._fill.waited = STALL_SECONDS + (0.0 if arrived > before else self._fill.waited)
                if self._fill.has_waited_enough or not await self._is_renewed():
                    raise Unavailable("the node that fetches the blob sends nothing") from error
