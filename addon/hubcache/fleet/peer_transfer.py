"""The bytes of a blob that another node sends while it fetches them."""

import time
from collections.abc import Awaitable, Callable

import aiohttp

from ..oci.errors import Unavailable
from ..transfer.download_response import Consume
from .peer_client import STALL_SECONDS, PeerBody
from .shared_fill import PATIENCE_SECONDS, PROGRESS_BYTES, SharedFill

SLOWEST_BYTES = 256 << 10
"""A node that sends fewer bytes than this in `PATIENCE_SECONDS` is given up: that is slower than one of many downloads
of a registry that are worth waiting for."""


class PeerTransfer:
    """A `Transfer` from the node at `address`, which holds the blob's lease, or has fetched its manifest. When nothing
    arrives, it goes on waiting while that node holds the lease and renews it: it may wait for a slow registry.

    When the body breaks off after few bytes, or is too slow, the fill receives no more from this node.
    """

    def __init__(
        self, body: PeerBody, address: str, start: int, fill: SharedFill, is_renewed: Callable[[], Awaitable[bool]]
    ) -> None:
        """`start` is the first byte that the fill lacks; the body may begin before it."""
        self._body = body
        self._address = address
        self._enough = start + PROGRESS_BYTES
        self._fill = fill
        self._is_renewed = is_renewed
        self._at = body.start
        """Number of the blob's bytes up to the last one that has arrived."""

    async def receive(self, consume: Consume) -> bool:
        """See `Transfer.receive`; raises `Unavailable` when the lease has expired, or the node is too slow."""
        pace = _Pace()

        def count(data: memoryview) -> bool:
            self._at += len(data)
            if pace.is_too_slow(len(data)):
                raise _TooSlow("the node that fetches the blob is too slow")
            return consume(data)

        try:
            has_ended = await self._receive(count)
        except (aiohttp.ClientError, Unavailable) as error:
            if self._at < self._enough or isinstance(error, _TooSlow):
                self._fill.give_up(self._address)
            raise
        is_complete = self._body.size is None or self._at >= self._body.size
        if has_ended and not is_complete and self._at < self._enough:
            self._fill.give_up(self._address)
        return has_ended

    async def _receive(self, consume: Consume) -> bool:
        while True:
            before = self._at
            try:
                return await self._body.receive(consume)
            except TimeoutError as error:
                self._fill.waited = STALL_SECONDS + (0.0 if self._at > before else self._fill.waited)
                if self._fill.has_waited_enough or not await self._is_renewed():
                    self._fill.at = self._at  # the next attempt begins here, and this wait counts in it, too
                    raise Unavailable("the node that fetches the blob sends nothing") from error


class _TooSlow(Unavailable):
    """A node sends bytes, but few."""


class _Pace:
    """Measures whether bytes arrive fast enough, from the construction on."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._arrived = 0

    def is_too_slow(self, arrived: int) -> bool:
        """Count bytes; return whether fewer than `SLOWEST_BYTES` have arrived in `PATIENCE_SECONDS`."""
        self._arrived += arrived
        now = time.monotonic()
        if now - self._since < PATIENCE_SECONDS:
            return False
        is_too_slow = self._arrived < SLOWEST_BYTES
        self._since, self._arrived = now, 0
        return is_too_slow
