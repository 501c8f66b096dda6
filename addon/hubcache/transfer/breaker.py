"""A circuit breaker per upstream host: after a few failures in a row nobody waits for that host any more.

While the circuit is open a probe in the background asks the host now and then, and closes it when it answers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

logger = logging.getLogger("hubcache")

THRESHOLD = 3
"""Failures in a row (no connection, 5xx) that open the circuit; one time-out is enough."""

_FIRST_PROBE_SECONDS = 1.0
_LAST_PROBE_SECONDS = 30.0

type Probe = Callable[[], Awaitable[bool]]
"""Asks the host for something cheap; True when it answers like a working server. Never raises."""


@dataclass(slots=True)
class Circuit:
    """State of one host; `reason` is the last failure, `opened_at` on the monotonic clock in seconds."""

    failures: int = 0
    reason: str = ""
    opened_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests should not even be tried."""
        return self.opened_at is not None


class Breakers:
    """The circuits of all hosts."""

    def __init__(self) -> None:
        self.circuits: dict[str, Circuit] = {}
        self._probes: set[asyncio.Task[None]] = set()

    def reason(self, host: str) -> str | None:
        """Why the host is not asked at present; None when it may be."""
        circuit = self.circuits.get(host)
        return circuit.reason if circuit is not None and circuit.is_open else None

    def succeeded(self, host: str) -> None:
        """The host answered."""
        circuit = self.circuits.setdefault(host, Circuit())
        if circuit.is_open:
            logger.info("hubcache: %s answers again", host)
        circuit.failures, circuit.opened_at = 0, None

    def failed(self, host: str, reason: str, probe: Probe, *, at_once: bool = False) -> None:
        """The host did not answer, or with 5xx; `probe` is how to find out when it works again.

        `at_once` opens the circuit at the first failure: a time-out already cost somebody the wait.
        """
        circuit = self.circuits.setdefault(host, Circuit())
        circuit.failures += THRESHOLD if at_once else 1
        circuit.reason = reason
        if circuit.failures >= THRESHOLD and not circuit.is_open:
            circuit.opened_at = time.monotonic()
            logger.warning("hubcache: %s: %s; not asking it until it answers a probe", host, reason)
            task = asyncio.create_task(self._probe(host, circuit, probe))
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    async def _probe(self, host: str, circuit: Circuit, probe: Probe) -> None:
        delay = _FIRST_PROBE_SECONDS
        while circuit.is_open:
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_PROBE_SECONDS)
            if circuit.is_open and await probe():
                self.succeeded(host)

    async def close(self) -> None:
        """End all probes."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
