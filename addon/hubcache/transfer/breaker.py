"""A circuit breaker per upstream host: after a few failures in a row nobody waits for that host any more.

No connection is a fact about the host. A 5xx or a missing answer is one about the object that was asked for, until
several objects fail with no answer in between, or the host does not answer a probe either: one broken blob must not
keep others from being fetched. While the circuit is open a probe in the background asks the host now and then, and
closes it when it answers.
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
"""Failures in a row to connect, or objects that failed in a row, that open the circuit; one time-out is enough."""

MAX_HOSTS = 256
"""Circuits that are kept, those asked for last: a registry names the hosts that its redirects lead to."""

UNUSED_SECONDS = 3600.0
"""A circuit is forgotten, and its probe ends, when nobody asked for its host for so long."""

WAIT_SECONDS = 2.5
"""How long after a circuit opened the outcome of its first probe is waited for at most."""

_FIRST_PROBE_SECONDS = 1.0
_LAST_PROBE_SECONDS = 30.0

type Probe = Callable[[], Awaitable[bool]]
"""Asks the host for something cheap; True when it answers like a working server. Never raises."""


@dataclass(slots=True)
class Circuit:
    """State of one host since it last answered: `failures` in a row, `reason` of the last one, `opened_at` on the
    monotonic clock in seconds."""

    failures: int = 0
    reason: str = ""
    opened_at: float | None = None
    refusals: int = 0
    """Failures of the host itself."""
    broken: set[str] = field(default_factory=set)
    """Objects that failed, `THRESHOLD` of them at most."""
    is_checked: bool = False
    """Whether the host is being asked at present if it is down, or only an object broken."""
    probed: asyncio.Event = field(default_factory=asyncio.Event)
    """The first probe since the circuit opened has ended."""

    @property
    def is_open(self) -> bool:
        """Whether requests should not even be tried."""
        return self.opened_at is not None

    def close(self) -> None:
        """The host answered."""
        self.failures, self.refusals, self.opened_at = 0, 0, None
        self.broken.clear()
        self.probed.set()


class CircuitOpen(UpstreamNotContacted):
    """The host was not asked because its circuit is open."""

    def __init__(self, host: str, circuit: Circuit) -> None:
        super().__init__(f"{host} is down: {circuit.reason}")
        self._circuit = circuit

    async def wait_for_probe(self) -> bool:
        """Wait for the outcome of the first probe, until `WAIT_SECONDS` after the circuit opened; tells whether the
        host may be asked again. Returns at once where a probe has failed already.

        For who has nothing stored to give instead: a circuit that opened by mistake is closed by its first probe.
        """
        if self._circuit.opened_at is not None:
            left = self._circuit.opened_at + WAIT_SECONDS - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, left)):
                    await self._circuit.probed.wait()
        return not self._circuit.is_open


class CircuitBreakers:
    """The circuits of all hosts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.circuits: TTLCache[str, Circuit] = TTLCache(MAX_HOSTS, UNUSED_SECONDS, clock)
        self._probes: set[asyncio.Task[None]] = set()

    def open_reason(self, host: str) -> str | None:
        """Why the host is not asked at present; None when it may be."""
        circuit = self._known(host)
        return circuit.reason if circuit is not None and circuit.is_open else None

    def raise_if_open(self, host: str) -> None:
        """Raise `CircuitOpen` when the host is not to be asked at present."""
        circuit = self._known(host)
        if circuit is not None and circuit.is_open:
            raise CircuitOpen(host, circuit)

    def record_success(self, host: str) -> None:
        """The host answered."""
        self._close(host, self._used(host))

    def record_failure(
        self, host: str, reason: str, probe: Probe, *, of: str | None = None, at_once: bool = False
    ) -> None:
        """The host did not answer, or with 5xx; `probe` is how to find out when it works again.

        `of` names the object that failed; None where the failure is the host's own. `at_once` opens the circuit at
        the first failure: a time-out already cost somebody the wait.
        """
        circuit = self._used(host)
        circuit.failures += 1
        circuit.reason = reason
        if of is None:
            circuit.refusals += 1
        elif len(circuit.broken) < THRESHOLD:
            circuit.broken.add(of)
        if circuit.is_open:
            return
        if at_once or circuit.refusals + len(circuit.broken) >= THRESHOLD:
            # After a time-out the probe goes out at once: it may well have been the object's fault.
            self._open(host, circuit, probe, 0.0 if at_once else _FIRST_PROBE_SECONDS)
        elif circuit.failures % THRESHOLD == 0 and not circuit.is_checked:
            self._spawn(self._find_out(host, circuit, probe))

    def _known(self, host: str) -> Circuit | None:
        """The circuit of a host that somebody asks for, which keeps it."""
        circuit = self.circuits.get(host)
        if circuit is not None:
            self.circuits[host] = circuit
        return circuit

    def _used(self, host: str) -> Circuit:
        circuit = self.circuits[host] = self.circuits.get(host) or Circuit()
        return circuit

    def _open(self, host: str, circuit: Circuit, probe: Probe, first: float) -> None:
        circuit.opened_at = time.monotonic()
        circuit.probed = asyncio.Event()
        logger.warning("hubcache: %s: %s; not asking it until it answers a probe", host, circuit.reason)
        self._spawn(self._probe(host, circuit, probe, first))

    @staticmethod
    def _close(host: str, circuit: Circuit) -> None:
        if circuit.is_open:
            logger.info("hubcache: %s answers again", host)
        circuit.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _find_out(self, host: str, circuit: Circuit, probe: Probe) -> None:
        """One object failed again and again: is the host down, or only that object broken?"""
        circuit.is_checked = True
        answers = await probe()
        circuit.is_checked = False
        if answers:
            self._close(host, circuit)
        elif not circuit.is_open and circuit.failures:
            self._open(host, circuit, probe, _FIRST_PROBE_SECONDS)

    async def _probe(self, host: str, circuit: Circuit, probe: Probe, first: float) -> None:
        """Until the circuit is closed or forgotten; when it opens again, that has a probe of its own."""
        probed = circuit.probed
        await asyncio.sleep(first)
        delay = _FIRST_PROBE_SECONDS
        while circuit.is_open and circuit.probed is probed and self.circuits.get(host) is circuit:
            if await probe() and circuit.probed is probed:
                self._close(host, circuit)
            probed.set()
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_PROBE_SECONDS)
        probed.set()

    async def close(self) -> None:
        """End all probes."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
