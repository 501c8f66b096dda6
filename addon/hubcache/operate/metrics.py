"""Contains the Prometheus metrics; they are also the `Observer` of `transfer`."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest

from ..oci.digest import Digest
from ..oci.errors import FillCancelled, HubcacheError, NotStored, StorageError
from ..store.store import Store
from ..transfer.breaker import CircuitBreakers
from .histogram import Histogram
from .host_labels import Hosts
from .pulls import CHECK
from .served_request import ServedRequest
from .traffic import Traffic

_STATUSES = frozenset(str(status.value) for status in HTTPStatus) | {"error"}

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
"""Upper bounds of the histograms of times, in seconds: from a stored manifest to a layer of gigabytes."""

MAX_LIMITS = 64
"""Number of rate limits that are remembered, one for each registry and kind of credential; the least recently reported
is forgotten. The number is bounded because clients may name registries."""

logger = logging.getLogger("hubcache")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A rate limit in pulls as an upstream reported it; `limit` is None if it did not report that. `at` is the time in
    seconds since the epoch."""

    limit: int | None
    remaining: int
    at: float


class Metrics:
    """The metrics of one engine, in a Prometheus registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # it would double the number of series
        self.registry = CollectorRegistry()
        self.traffic = Traffic()
        """The traffic since the start."""
        self.pulls = 0
        """The pulls that ended since the start."""
        self._requests = Counter(
            "hubcache_requests",
            "Requests from clients by kind (manifest, blob, referrers, ping, token, other), result, and door (proxy or "
            "mirror).",
            ["kind", "result", "door"],
            registry=self.registry,
        )
        self._answered = cache(self._requests.labels)
        self._first_byte = Histogram(
            "hubcache_first_byte_seconds",
            "Time from a client's request to the first byte of the answer, by kind and result.",
            ["kind", "result"],
            BUCKETS,
            self.registry,
        )
        self._duration = Histogram(
            "hubcache_request_seconds",
            "Time from a client's request to the last byte of the answer, by kind and result.",
            ["kind", "result"],
            BUCKETS,
            self.registry,
        )
        self._pulls = Counter(
            "hubcache_pulls",
            "Pulls of clients by result (hit, stale, miss, mixed, private, failed; check: only whether a tag moved).",
            ["result"],
            registry=self.registry,
        )
        sent = Counter(
            "hubcache_sent_bytes", "Body bytes sent to clients by source.", ["source"], registry=self.registry
        )
        self._sent_from = cache(sent.labels)  # called for each chunk of each body
        self._upstream = Counter(
            "hubcache_upstream_requests",
            "Requests to upstreams by host, kind and status (error = no response).",
            ["host", "kind", "status"],
            registry=self.registry,
        )
        self._received = Counter(
            "hubcache_upstream_bytes", "Blob bytes received from upstreams.", ["host"], registry=self.registry
        )
        self._limit = Gauge(
            "hubcache_ratelimit_limit",
            "Rate limit in pulls, as last reported by the upstream.",
            ["host", "credential"],
            registry=self.registry,
        )
        self._remaining = Gauge(
            "hubcache_ratelimit_remaining",
            "Remaining pulls, as last reported by the upstream.",
            ["host", "credential"],
            registry=self.registry,
        )
        self._hosts = Hosts(self._forget_host)
        self.rate_limits: dict[tuple[str, str], RateLimit] = {}
        """The rate limits by host and kind of credential, in the order of their last report."""
        self._breakers = CircuitBreakers()
        self._up = Gauge(
            "hubcache_upstream_up",
            "0 while the host's circuit breaker is open, else 1.",
            ["host"],
            registry=self.registry,
        )
        self._ca_expiry = Gauge(
            "hubcache_ca_expiry_timestamp_seconds",
            "Time at which the certificate of the CA expires; 0 = unknown.",
            registry=self.registry,
        )
        Gauge(
            "hubcache_start_timestamp_seconds", "Time at which the program was started.", registry=self.registry
        ).set_to_current_time()
        self._tasks = Gauge("hubcache_tasks", "Tasks of the event loop.", registry=self.registry)
        self._workers = Gauge("hubcache_workers", "Processes that serve clients.", registry=self.registry)
        self.workers_changed(1)
        self._fills = Gauge("hubcache_fills_in_flight", "Running fills.", registry=self.registry)
        self._fill_results = Counter("hubcache_fills", "Finished fills by result.", ["result"], registry=self.registry)

    def watch(self, store: Store, breakers: CircuitBreakers) -> None:
        """Report the state of the store and of the circuit breakers, as it is at the time of `render`."""
        self._breakers = breakers
        gauges: list[tuple[str, str, Callable[[], float]]] = [
            ("hubcache_store_bytes", "Bytes on disk and reserved for fills.", lambda: store.usage.used),
            ("hubcache_store_capacity_bytes", "Capacity of the store in bytes.", lambda: store.capacity.max_bytes),
            ("hubcache_store_objects", "Stored blobs and manifests.", lambda: len(store.usage.sizes)),
            ("hubcache_store_evictions", "Objects evicted since start.", lambda: store.capacity.removed),
            ("hubcache_store_damaged", "Objects found damaged since start.", lambda: store.damage.count),
            ("hubcache_quarantine_bytes", "Bytes of damaged content in quarantine.", lambda: store.usage.quarantined),
            ("hubcache_scrub_bytes", "Bytes verified by scrubbing since start.", lambda: store.scrub_status.bytes),
            (
                "hubcache_scrub_objects",
                "Objects verified by scrubbing since start.",
                lambda: store.scrub_status.objects,
            ),
            (
                "hubcache_scrub_progress",
                "Verified part of the stored content in the current scrub, 0 to 1.",
                lambda: store.scrub_status.progress,
            ),
            (
                "hubcache_scrub_finished_timestamp_seconds",
                "Time at which the last complete scrub finished; 0 = never.",
                lambda: store.scrub_status.finished_at or 0.0,
            ),
            ("hubcache_store_usable", "1 while content can be stored, else 0.", lambda: store.problem is None),
        ]
        for name, help, value in gauges:
            Gauge(name, help, registry=self.registry).set_function(value)

    def answered(self, kind: str, result: str, listener: str, count: int = 1) -> None:
        """Count client requests that were answered or forwarded."""
        self._answered(kind, result, listener).inc(count)
        self.traffic.count_answer(kind, result, count)

    def sent(self, source: str, count: int) -> None:
        """Count body bytes that were sent to a client."""
        self._sent_from(source).inc(count)
        self.traffic.count_sent(source, count)

    def request_ended(self, request: ServedRequest) -> None:
        """Count the times of a request that ended."""
        labels = request.kind, request.result.value
        self._first_byte.observe(labels, request.first_byte)
        self._duration.observe(labels, request.duration)

    def ca_expires(self, at: datetime) -> None:
        """Set the time at which the CA's certificate expires."""
        self._ca_expiry.set(at.timestamp())

    def pull_ended(self, result: str) -> None:
        """Count a pull that ended, or a check."""
        self._pulls.labels(result).inc()
        self.pulls += result != CHECK

    def workers_changed(self, count: int) -> None:
        """Set the number of processes that serve clients."""
        self._workers.set(count)
        self.workers = count

    def tasks_counted(self, count: int) -> None:
        """Set the number of tasks of the event loop."""
        self._tasks.set(count)

    def remaining(self, host: str, credential: str) -> int | None:
        """Return the remaining pulls as last reported for this kind of credential, or None when never reported."""
        known = self.rate_limits.get((host, credential))
        return None if known is None else known.remaining

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text exposition format."""
        self._hosts.expire()
        self._up.clear()
        down = {
            self._hosts.existing_label(host) for host, circuit in self._breakers.circuits.items() if circuit.is_open
        }
        for host in self._breakers.circuits:
            label = self._hosts.existing_label(host)
            self._up.labels(label).set(label not in down)
        return generate_latest(self.registry)

    def _forget_host(self, host: str) -> None:
        for family in (self._upstream, self._received):
            series = {tuple(sample.labels.values()) for metric in family.collect() for sample in metric.samples}
            for labels in series:
                if labels[0] == host:
                    family.remove(*labels)

    # -- Observer -------------------------------------------------------------------------------------------------

    def upstream_answered(self, host: str, kind: str, status: str) -> None:
        self._upstream.labels(self._hosts.label(host), kind, status if status in _STATUSES else "other").inc()
        self.traffic.count_upstream(kind, status)

    def upstream_bytes(self, host: str, count: int) -> None:
        self._received.labels(self._hosts.label(host)).inc(count)
        self.traffic.upstream_bytes += count

    def rate_limit_seen(self, host: str, credential: str, limit: int | None, remaining: int) -> None:
        earlier = self.rate_limits.pop((host, credential), None)
        if len(self.rate_limits) >= MAX_LIMITS:
            oldest = next(iter(self.rate_limits))
            del self.rate_limits[oldest]
            self._remaining.remove(*oldest)
            self._limit.remove(*oldest)
        known_limit = earlier.limit if limit is None and earlier is not None else limit
        self.rate_limits[host, credential] = RateLimit(known_limit, remaining, time.time())
        self._remaining.labels(host, credential).set(remaining)
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
