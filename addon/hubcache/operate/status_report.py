"""Collects the status of the cache, as the status page, `/status.json`, `/events` and `hubcache status` show it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from typing import Any

from ..store.capacity import Removal
from ..store.store import Store
from ..transfer.breaker import CircuitBreakers
from ..transfer.fills import FillProgress
from . import problems
from .history import History
from .metrics import Metrics
from .process_facts import ProcessFacts
from .pull import Pull
from .pulls import Pulls
from .repository_names import Reader, RepositoryNames
from .served_request import ServedRequest
from .version import version

MAX_EVICTIONS = 20
"""Removals that a snapshot lists; `/evictions` lists all that are remembered."""

MAX_IMAGES = 10
"""Images that a snapshot lists."""

MAX_PULLS = 50
"""Recent pulls that a snapshot lists; of running ones, it lists all that `Pulls.running` returns."""

MAX_FILLS = 50
"""Fills that a snapshot lists."""


class StatusReport:
    """The status of one cache. `fills` returns the running fills."""

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        breakers: CircuitBreakers,
        pulls: Pulls,
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
        self.fleet: Callable[[], dict[str, Any] | None] = lambda: None
        """Returns the state of the fleet (see `fleet_report`); None for a cache that works alone."""
        self._pulls = pulls
        pulls.on_ended = lambda pull: self.history.images.add(pull, time.time())
        self._fills = fills
        self._names = RepositoryNames()
        self._started = time.time()
        self._started_monotonic = time.monotonic()

    def request_ended(self, request: ServedRequest) -> None:
        """Record a request that ended."""
        self._names.add(request)

    def snapshot(self, *, public: bool) -> dict[str, Any]:
        """Return the present status in JSON types. Times are seconds since the epoch, sizes bytes.

        `public`: omit the fleet, addresses of clients, names and digests of content of repositories that are not known
        to be public, and paths on this machine, since every client of the proxy may read it.
        """
        now = time.time()
        self.history.record(now)
        process = None
        if not public:
            facts = {"outbound_proxy": self.outbound_proxy, "registries": self.registries}
            process = self.process.report() | facts
        reader = Reader(self.store, public=public)
        running = sorted(self._fills(), key=lambda fill: fill.started)
        return {
            "version": version(),
            "started": self._started,
            "uptime": time.monotonic() - self._started_monotonic,
            "now": now,
            "is_public": public,
            "problems": self._problems(now, reader),
            "workers": self.metrics.workers,
            "listeners": self.process.addresses(),
            "process": process,
            "store": self._store_status(reader),
            "scrub": asdict(self.store.scrub_status),
            "ratio": self.history.ratios(now),
            "ratelimit": self._rate_limits(),
            "upstreams": self._upstreams(),
            "fleet": None if public else self.fleet(),
            "fills": [_fill(fill, reader) for fill in running[:MAX_FILLS]],
            "images": self._images(now, reader),
            "pulls": {
                "running": [_pull(pull, reader) for pull in self._pulls.running],
                "recent": [_pull(pull, reader) for pull in list(reversed(self._pulls.recent))[:MAX_PULLS]],
            },
            "evictions": self.evictions(reader, MAX_EVICTIONS),
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

    def evictions(self, reader: Reader | None = None, count: int | None = None) -> list[dict[str, Any]]:
        """Return the last removals with time and reason, the newest first; at most `count` of them.

        For a `reader`, add the image through which clients requested the content, where that is known.
        """
        removals = list(reversed(self.store.capacity.history))[:count]
        return [_removal(removal) | self._image(removal, reader) for removal in removals]

    def _image(self, removal: Removal, reader: Reader | None) -> dict[str, str | None]:
        if reader is None:
            return {}
        repository = self._names.of(removal.eviction.key)
        image = repository and reader.name(*repository)
        return {"image": image} if image or not reader.is_public else {"image": None, "digest": None}

    def _problems(self, now: float, reader: Reader) -> list[str]:
        return [
            *(
                problems.store_problem(part, text, public=reader.is_public)
                for part, text in self.store.index.problems.items()
            ),
            *problems.upstream_problems(self.breakers.circuits),
            *problems.rate_limit_problems(self.metrics.rate_limits, now),
            *problems.space_problems(self.store.capacity.history, now),
            *problems.damage_problems(self.store.damage.count),
            *problems.fleet_problems(self.fleet(), public=reader.is_public),
        ]

    def _store_status(self, reader: Reader) -> dict[str, Any]:
        store, damage = self.store, self.damage()
        problem = store.problem
        if reader.is_public:
            damage["last"] = None
            problem = None if problem is None else "content cannot be stored"
        return {
            "directory": None if reader.is_public else str(store.directory),
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

    def _images(self, now: float, reader: Reader) -> list[dict[str, Any]]:
        top = self.history.images.top(now, self.history.images.count)
        shown = (each for each in top if reader.may_see(each[0].registry, each[0].repository))
        return [
            {"name": image.name, "requests": pulls, "bytes": sent, "last": image.last}
            for image, pulls, sent in islice(shown, MAX_IMAGES)
        ]


def _removal(removal: Removal) -> dict[str, Any]:
    eviction = removal.eviction
    numbers = {name: getattr(eviction, name) for name in ("size", "reason", "score", "requests", "idle")}
    return {"at": removal.at, "digest": str(eviction.key)} | numbers


def _fill(fill: FillProgress, reader: Reader) -> dict[str, Any]:
    return {
        "digest": str(fill.digest) if reader.may_see(fill.registry, fill.repository) else None,
        "image": reader.name(fill.registry, fill.repository),
        "received": fill.written,
        "size": fill.size,
        "readers": fill.readers,
        "started": fill.started,
        "is_waiting": fill.is_waiting,
    }


def _pull(pull: Pull, reader: Reader) -> dict[str, Any]:
    described = asdict(pull) | {"started": pull.started or None}  # unknown until the first request has ended
    if reader.is_public:
        described["client"] = None
    if not reader.may_see(pull.registry, pull.repository):
        described |= dict.fromkeys(("image", "registry", "repository", "error"))
    return described
