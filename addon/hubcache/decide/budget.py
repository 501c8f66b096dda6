"""How many requests may be made to a registry on average: a token bucket. Pure; `now` is an argument, in seconds."""

import math

BURST_SECONDS = 10.0
"""So many seconds of the rate may be spent at once after a pause."""


class Budget:
    """At most `rate` requests per second on average, and in any `w` seconds no more than `burst + rate * w`.

    One request at least can be saved up for, however low the rate; a rate of 0 permits none.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._saved = self.burst
        self._at = now

    @property
    def burst(self) -> float:
        """Requests that may be made at once after a pause."""
        return max(1.0, self._rate * BURST_SECONDS) if self._rate > 0 else 0.0

    def change(self, rate: float, now: float) -> None:
        """Another rate from now on; what was saved stays, as far as the new burst allows."""
        self._save(now)
        self._rate = rate
        self._saved = min(self._saved, self.burst)

    def spend(self, now: float) -> bool:
        """Whether one request may be made now; it counts as made then."""
        self._save(now)
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True

    def reserve(self, now: float) -> float:
        """Count one request as made, which is to be made in so many seconds; infinite for a rate of 0."""
        seconds = self.wait(now)
        if seconds < math.inf:
            self._saved -= 1.0
        return seconds

    def wait(self, now: float) -> float:
        """Seconds until one request may be made; infinite for a rate of 0."""
        self._save(now)
        if self._saved >= 1.0:
            return 0.0
        return (1.0 - self._saved) / self._rate if self._rate > 0 else math.inf

    def _save(self, now: float) -> None:
        """A clock that was set back earns nothing, and loses nothing either."""
        self._saved = min(self.burst, self._saved + max(0.0, now - self._at) * self._rate)
        self._at = now
