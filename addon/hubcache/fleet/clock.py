"""The bucket's clock: nodes whose own clocks differ compare the times of objects by it."""

import time
from collections import deque
from collections.abc import Callable

_RESOLUTION = 1.0
"""Seconds: stores may report the time of a write without its fraction, as `Last-Modified` does (RFC 9110, 5.6.7)."""

_KEPT = 30
"""Number of observations used, which is 5 minutes of heartbeats: quartz drifts less than 0.05 seconds in that time."""


class BucketClock:
    """Estimates the time of the bucket's clock from the times that it gives to this node's own writes.

    The bucket's time of a write is known to a second, and it lies between the request and its response. Each write
    therefore bounds the difference of the clocks from both sides; several writes together bound it more closely. Until
    the first write, the bucket's clock is taken to be equal to this machine's.

    All times are in seconds. Those that are called local are this machine's `time.time()`.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._bounds = deque[tuple[float, float]](maxlen=_KEPT)
        self._difference: float | None = None

    def now(self) -> float:
        """Return the bucket's time, in seconds since the epoch."""
        if self._difference is None:
            return self._wall()
        return self._monotonic() + self._difference

    def to_bucket(self, local: float) -> float:
        """Return the bucket's time at a local time."""
        return local + self._ahead()

    def to_local(self, bucket: float) -> float:
        """Return the local time at a time of the bucket."""
        return bucket - self._ahead()

    def ticks(self) -> float:
        """Return the time of a clock that is never set (for `observe`)."""
        return self._monotonic()

    def observe(self, modified: float, sent: float, received: float) -> None:
        """Record that the bucket gave the time `modified` to a write between two times of `ticks`."""
        low, high = modified - received, modified + _RESOLUTION - sent
        self._bounds.append((low, high))
        lowest, highest = self._common_bounds()
        if lowest > highest:  # the bucket's clock was set, or this machine was suspended: older observations are void
            self._bounds.clear()
            self._bounds.append((low, high))
            lowest, highest = low, high
        self._difference = (lowest + highest) / 2

    def _common_bounds(self) -> tuple[float, float]:
        return max(low for low, _ in self._bounds), min(high for _, high in self._bounds)

    def _ahead(self) -> float:
        """Return the seconds by which the bucket's clock is ahead of this machine's now."""
        return self.now() - self._wall() if self._difference is not None else 0.0
