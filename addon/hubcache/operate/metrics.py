"""Counters for Prometheus; also the `Observer` of the transfer side."""

import logging
from collections.abc import Callable
from functools import cache
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest

from ..oci.digest import Digest
from ..oci.errors import FillCancelled, HubcacheError, NotStored, StorageError
from ..store.store import Store
from ..transfer.breaker import CircuitBreakers
from .host_labels import Hosts

_STATUSES = frozenset(str(status.value) for status in HTTPStatus) | {"error"}

logger = logging.getLogger("hubcache")


class Metrics:
    """All numbers of one process, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, that nobody asks for
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "hubcache_requests",
            "Requests from clients by kind (manifest, blob, referrers, ping, token, other) and result.",
            ["kind", "result", "door"],
            registry=self.registry,
        )
        sent = Counter(
            "hubcache_sent_bytes", "Body bytes sent to clients by source.", ["source"], registry=self.registry
        )
        self._sent_from = cache(sent.labels)  # asked for each chunk of each body
        self._upstream = Counter(
            "hubcache_upstream_requests",
            "Requests to upstreams by host, kind and status (error = no answer).",
            ["host", "kind", "status"],
            registry=self.registry,
        )
        self._received = Counter(
            "hubcache_upstream_bytes", "Blob bytes received from upstreams.", ["host"], registry=self.registry
        )
        self._limit = Gauge(
            "hubcache_ratelimit_limit",
            "Pulls allowed, as last told by the upstream.",
            ["host", "credential"],
            registry=self.registry,
        )
        self._remaining = Gauge(
            "hubcache_ratelimit_remaining",
            "Pulls left, as last told by the upstream.",
            ["host", "credential"],
            registry=self.registry,
        )
        self._hosts = Hosts(self._forget_host)
        self._last_remaining: dict[tuple[str, str], int] = {}
        self._breakers = CircuitBreakers()
        self._up = Gauge(
            "hubcache_upstream_up", "0 while the host's circuit is open.", ["host"], registry=self.registry
        )
        self._tasks = Gauge("hubcache_tasks", "Tasks of the event loop.", registry=self.registry)
        self._workers = Gauge("hubcache_workers", "Processes that speak with clients.", registry=self.registry)
        self.workers_changed(1)
        self._fills = Gauge("hubcache_fills_in_flight", "Blobs being fetched.", registry=self.registry)
        self._fill_results = Counter(
            "hubcache_fills", "Fills that ended, by result.", ["result"], registry=self.registry
        )

    def watch(self, store: Store, breakers: CircuitBreakers) -> None:
        """Show the store's numbers and the circuits' states as they are when asked for."""
        self._breakers = breakers
        numbers: list[tuple[str, str, Callable[[], float]]] = [
            ("hubcache_store_bytes", "Bytes on disk or reserved for fills.", lambda: store.ledger.used),
            ("hubcache_store_capacity_bytes", "The cap on the store's bytes.", lambda: store.rooms.capacity),
            ("hubcache_store_objects", "Blobs and manifests stored.", lambda: len(store.ledger.sizes)),
            ("hubcache_store_evictions", "Objects removed by the policy since start.", lambda: store.rooms.removed),
            ("hubcache_store_damaged", "Objects found damaged since start.", lambda: store.damages),
            ("hubcache_quarantine_bytes", "Bytes of damaged content put aside.", lambda: store.ledger.quarantined),
            ("hubcache_scrub_bytes", "Bytes verified unasked since start.", lambda: store.scrubbed.bytes),
            ("hubcache_scrub_objects", "Objects verified unasked since start.", lambda: store.scrubbed.objects),
            ("hubcache_scrub_progress", "Part of all content verified, 0 to 1.", lambda: store.scrubbed.progress),
            (
                "hubcache_scrub_finished_timestamp_seconds",
                "When all content had been verified for the last time; 0 = never.",
                lambda: store.scrubbed.finished_at or 0.0,
            ),
            ("hubcache_store_usable", "1 when content can be stored.", lambda: store.problem is None),
        ]
        for name, text, value in numbers:
            Gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, kind: str, result: str, door: str, count: int = 1) -> None:
        """A client's request (or that many) was answered or passed on."""
        self._requests.labels(kind, result, door).inc(count)

    def sent(self, source: str, count: int) -> None:
        """Body bytes went to a client."""
        self._sent_from(source).inc(count)

    def workers_changed(self, count: int) -> None:
        """So many processes speak with clients."""
        self._workers.set(count)

    def tasks_counted(self, count: int) -> None:
        """So many tasks are in the event loop."""
        self._tasks.set(count)

    def remaining(self, host: str, credential: str) -> int | None:
        """Pulls left by the upstream's last word to this kind of credential; None when it never told."""
        return self._last_remaining.get((host, credential))

    def render(self) -> bytes:
        """The text exposition format."""
        self._hosts.expire()
        self._up.clear()
        down = {self._hosts.known(host) for host, circuit in self._breakers.circuits.items() if circuit.is_open}
        for host in self._breakers.circuits:
            label = self._hosts.known(host)
            self._up.labels(label).set(label not in down)
        return generate_latest(self.registry)

    def _forget_host(self, host: str) -> None:
        for family in (self._upstream, self._received):
            gone = {tuple(one.labels.values()) for all_of in family.collect() for one in all_of.samples}
            for labels in gone:
                if labels[0] == host:
                    family.remove(*labels)

    # -- Observer -------------------------------------------------------------------------------------------------

    def upstream_answered(self, host: str, kind: str, status: str) -> None:
        self._upstream.labels(self._hosts.label(host), kind, status if status in _STATUSES else "other").inc()

    def upstream_bytes(self, host: str, count: int) -> None:
        self._received.labels(self._hosts.label(host)).inc(count)

    def rate_limit_seen(self, host: str, credential: str, limit: int | None, remaining: int) -> None:
        self._remaining.labels(host, credential).set(remaining)
        self._last_remaining[host, credential] = remaining
        if limit is not None:
            self._limit.labels(host, credential).set(limit)

    def fills_changed(self, in_flight: int) -> None:
        self._fills.set(in_flight)

    def fill_ended(self, digest: Digest, error: HubcacheError | None) -> None:
        result = "stored" if error is None else "failed"
        if isinstance(error, StorageError):
            result = "not_admitted" if isinstance(error, NotStored) else "not_storable"
        if isinstance(error, FillCancelled):
            result = "abandoned"
        self._fill_results.labels(result).inc()
        if error is not None and not isinstance(error, StorageError | FillCancelled):
            logger.warning("hubcache: fetching %s failed: %s", digest, error)
