"""A token bucket that limits the average rate of requests to a registry. Pure; `now` is an argument, in seconds."""

import math

BURST_SECONDS = 10.0
"""Size of the burst: after a pause, as many requests may be made at once as the rate permits in this many seconds."""


class Budget:
    """At most `rate` requests per second on average, and within any `w` seconds no more than `burst + rate * w`.

    At least one request can be saved up, however low the rate; a rate of 0 permits none.
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
        """Use another rate from now on; saved requests are kept, up to the new burst."""
        self._save(now)
        self._rate = rate
        self._saved = min(self._saved, self.burst)

    def spend(self, now: float) -> bool:
        """Whether one request may be made now; if so, it is counted."""
        self._save(now)
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True

    def reserve(self, now: float) -> float:
        """Count one request, and return the seconds after which it may be made; infinite for a rate of 0."""
        seconds = self.wait(now)
        if seconds < math.inf:
            self._saved -= 1.0
        return seconds

    def wait(self, now: float) -> float:
        """Return the seconds after which one request may be made; infinite for a rate of 0."""
        self._save(now)
        if self._saved >= 1.0:
            return 0.0
        return (1.0 - self._saved) / self._rate if self._rate > 0 else math.inf

    def _save(self, now: float) -> None:
        """Add the requests saved since the last call. A clock that was set back neither adds nor removes any."""
        self._saved = min(self.burst, self._saved + max(0.0, now - self._at) * self._rate)
        self._at = now
