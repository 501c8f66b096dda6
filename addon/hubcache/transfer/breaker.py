"""A circuit breaker per upstream host: after a few failures in a row no request waits for that host.

A failure to connect is a failure of the host. A 5xx status or a missing response is a failure of the requested object,
until several objects fail without a successful response in between, or the host does not answer a probe either: one
broken blob must not prevent other blobs from being fetched. While a circuit is open, a background task probes the host
from time to time, and closes the circuit when it answers.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from cachetools import TTLCache

from ..oci.errors import UpstreamNotContacted

logger = logging.getLogger("hubcache")

THRESHOLD = 3
"""Failed connections in a row, or objects that failed in a row, that open the circuit. A single time-out opens it."""

MAX_HOSTS = 256
"""Circuits that are remembered, by last use: a registry's redirects can name any number of hosts."""

UNUSED_SECONDS = 3600.0
"""A circuit is forgotten, and its probes end, when no request concerned its host for this long."""

WAIT_SECONDS = 2.5
"""Longest wait for the first probe, counted from when the circuit opened."""

_FIRST_PROBE_SECONDS = 1.0
_LAST_PROBE_SECONDS = 30.0

type Probe = Callable[[], Awaitable[bool]]
"""Sends the host a cheap request; returns whether it answers like a working server. Never raises."""


@dataclass(slots=True)
class Circuit:
    """State of one host since its last successful response: `failures` in a row, `reason` of the last one, `opened_at`
    in seconds of the monotonic clock."""

    failures: int = 0
    reason: str = ""
    opened_at: float | None = None
    host_failures: int = 0
    """Failures of the host itself."""
    failed_objects: set[str] = field(default_factory=set)
    """Objects that failed, at most `THRESHOLD` of them."""
    is_checking: bool = False
    """Whether a probe is running to tell a host that is down from a broken object."""
    probed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first probe since the circuit opened has ended."""

    @property
    def is_open(self) -> bool:
        """Whether requests fail without being sent."""
        return self.opened_at is not None

    def close(self) -> None:
        """Reset the state after a successful response."""
        self.failures, self.host_failures, self.opened_at = 0, 0, None
        self.failed_objects.clear()
        self.probed.set()


class CircuitOpen(UpstreamNotContacted):
    """The request was not sent because the host's circuit is open."""

    def __init__(self, host: str, circuit: Circuit) -> None:
        super().__init__(f"{host} is down: {circuit.reason}")
        self._circuit = circuit

    async def wait_for_probe(self) -> bool:
        """Wait for the outcome of the first probe, until `WAIT_SECONDS` after the circuit opened; return whether the
        host may be contacted again. Returns at once when a probe has failed already.

        For requests that cannot be answered from the store: a circuit that opened by mistake is closed by its first
        probe.
        """
        if self._circuit.opened_at is not None:
            remaining = self._circuit.opened_at + WAIT_SECONDS - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, remaining)):
                    await self._circuit.probed.wait()
        return not self._circuit.is_open


class CircuitBreakers:
    """The circuits of all hosts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.circuits: TTLCache[str, Circuit] = TTLCache(MAX_HOSTS, UNUSED_SECONDS, clock)
        self._tasks: set[asyncio.Task[None]] = set()

    def open_reason(self, host: str) -> str | None:
        """Return why the host's circuit is open; None when it is closed."""
        circuit = self._find(host)
        return circuit.reason if circuit is not None and circuit.is_open else None

    def raise_if_open(self, host: str) -> None:
        """Raise `CircuitOpen` when the host's circuit is open."""
        circuit = self._find(host)
        if circuit is not None and circuit.is_open:
            raise CircuitOpen(host, circuit)

    def record_success(self, host: str) -> None:
        """Record that the host answered."""
        self._close(host, self._find_or_add(host))

    def record_failure(
        self, host: str, reason: str, probe: Probe, *, of: str | None = None, at_once: bool = False
    ) -> None:
        """Record a missing response, or one with a 5xx status; `probe` finds out when the host works again.

        `of` is the object that failed, None for a failure of the host. With `at_once` the first failure opens the
        circuit: a time-out has already delayed a client.
        """
        circuit = self._find_or_add(host)
        circuit.failures += 1
        circuit.reason = reason
        if of is None:
            circuit.host_failures += 1
        elif len(circuit.failed_objects) < THRESHOLD:
            circuit.failed_objects.add(of)
        if circuit.is_open:
            return
        if at_once or circuit.host_failures + len(circuit.failed_objects) >= THRESHOLD:
            # Probe at once after a time-out: the object may have caused it.
            self._open(host, circuit, probe, 0.0 if at_once else _FIRST_PROBE_SECONDS)
        elif circuit.failures % THRESHOLD == 0 and not circuit.is_checking:
            self._start_task(self._check(host, circuit, probe))

    def _find(self, host: str) -> Circuit | None:
        """Return the circuit of a host, and count this as a use of it."""
        circuit = self.circuits.get(host)
        if circuit is not None:
            self.circuits[host] = circuit
        return circuit

    def _find_or_add(self, host: str) -> Circuit:
        circuit = self.circuits[host] = self.circuits.get(host) or Circuit()
        return circuit

    def _open(self, host: str, circuit: Circuit, probe: Probe, delay: float) -> None:
        circuit.opened_at = time.monotonic()
        circuit.probed = asyncio.Event()
        logger.warning("hubcache: %s: %s; circuit open, no requests until it answers a probe", host, circuit.reason)
        self._start_task(self._probe(host, circuit, probe, delay))

    @staticmethod
    def _close(host: str, circuit: Circuit) -> None:
        if circuit.is_open:
            logger.info("hubcache: %s answers again", host)
        circuit.close()

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self, host: str, circuit: Circuit, probe: Probe) -> None:
        """Probe a host of which one object failed repeatedly; open its circuit if it does not answer."""
        circuit.is_checking = True
        answers = await probe()
        circuit.is_checking = False
        if answers:
            self._close(host, circuit)
        elif not circuit.is_open and circuit.failures:
            self._open(host, circuit, probe, _FIRST_PROBE_SECONDS)

    async def _probe(self, host: str, circuit: Circuit, probe: Probe, delay: float) -> None:
        """Probe until the circuit is closed or forgotten; a circuit that opens again has another task."""
        probed = circuit.probed
        await asyncio.sleep(delay)
        delay = _FIRST_PROBE_SECONDS
        while circuit.is_open and circuit.probed is probed and self.circuits.get(host) is circuit:
            if await probe() and circuit.probed is probed:
                self._close(host, circuit)
            probed.set()
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_PROBE_SECONDS)
        probed.set()

    async def close(self) -> None:
        """Cancel all probes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
