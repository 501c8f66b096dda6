"""Collects the status of the cache, as the status page, `/status.json`, `/events` and `hubcache status` show it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from ..store.store import Store
from ..transfer.breaker import CircuitBreakers
from ..transfer.fills import FillProgress
from .history import History
from .metrics import Metrics
from .process_facts import ProcessFacts
from .version import version

MAX_EVICTIONS = 20
"""Removals that a snapshot lists; `/evictions` lists all that are remembered."""


class StatusReport:
    """The status of one cache. `fills` returns the running fills."""

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        breakers: CircuitBreakers,
        fills: Callable[[], Iterable[FillProgress]] = tuple,
    ) -> None:
        self.store = store
        self.metrics = metrics
        self.breakers = breakers
        self.history = History(metrics.traffic)
        self.process = ProcessFacts()
        """Facts about the program, which it sets when its listeners are open."""
        self.outbound_proxy: str | None = None
        """The outbound proxy of requests to registries, without credentials."""
        self.registries: list[str] = []
        """Hosts of the registries that are cached, without those that only a pattern permits."""
        self._fills = fills
        self._started = time.time()
        self._started_monotonic = time.monotonic()

    def snapshot(self, *, public: bool) -> dict[str, Any]:
        """Return the present status in JSON types. Times are seconds since the epoch, sizes bytes.

        `public`: omit addresses of clients, names of private repositories and paths on this machine, since every client
        of the proxy may read it.
        """
        now = time.time()
        self.history.record(now)
        process = None
        if not public:
            facts = {"outbound_proxy": self.outbound_proxy, "registries": self.registries}
            process = self.process.report() | facts
        return {
            "version": version(),
            "started": self._started,
            "uptime": time.monotonic() - self._started_monotonic,
            "now": now,
            "problems": [],
            "workers": self.metrics.workers,
            "listeners": self.process.addresses(),
            "process": process,
            "store": self._store_status(public),
            "scrub": asdict(self.store.scrub_status),
            "ratio": self.history.ratios(now),
            "ratelimit": self._rate_limits(),
            "upstreams": self._upstreams(),
            "fills": [self._fill(fill) for fill in self._fills()],
            "images": [],
            "pulls": {"running": [], "recent": []},
            "evictions": self.evictions(MAX_EVICTIONS),
            "history": self.history.points(now),
        }

    def damage(self) -> dict[str, Any]:
        """Return the number of objects found damaged since start, and the details of the last one."""
        last = self.store.damage.last
        details = None
        if last is not None:
            details = {"at": last.at, "digest": last.digest, "why": last.why}
            details |= {"path": last.path and str(last.path), "kept": last.kept and str(last.kept)}
        return {"count": self.store.damage.count, "quarantined_bytes": self.store.usage.quarantined, "last": details}

    def evictions(self, count: int | None = None) -> list[dict[str, Any]]:
        """Return the last removals with time and reason, the newest first; at most `count` of them."""
        return [
            {"at": removal.at, "digest": str(removal.eviction.key)}
            | {name: getattr(removal.eviction, name) for name in ("size", "reason", "score", "requests", "idle")}
            for removal in list(reversed(self.store.capacity.history))[:count]
        ]

    def _store_status(self, public: bool) -> dict[str, Any]:
        store, damage = self.store, self.damage()
        problem = store.problem
        if public:
            damage["last"] = None
            problem = None if problem is None else "content cannot be stored"
        return {
            "directory": None if public else str(store.directory),
            "problem": problem,
            "bytes": store.usage.used,
            "capacity": store.capacity.max_bytes,
            "objects": len(store.usage.sizes),
            "damage": damage,
        }

    def _rate_limits(self) -> list[dict[str, Any]]:
        return [
            {"registry": host, "credential": credential} | asdict(limit)
            for (host, credential), limit in self.metrics.rate_limits.items()
        ]

    def _upstreams(self) -> list[dict[str, Any]]:
        return [
            {"registry": host, "is_up": not circuit.is_open, "reason": circuit.reason if circuit.is_open else None}
            for host, circuit in sorted(self.breakers.circuits.items())
        ]

    @staticmethod
    def _fill(fill: FillProgress) -> dict[str, Any]:
        progress = {"digest": str(fill.digest), "image": None, "received": fill.written, "size": fill.size}
        return progress | {"readers": fill.readers, "started": None}
