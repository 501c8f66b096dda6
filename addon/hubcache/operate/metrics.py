"""Counters for Prometheus; also the `Observer` of the transfer side."""

import logging
from collections.abc import Callable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest

from ..oci.digest import Digest
from ..oci.errors import HubcacheError, NotStored, StorageError
from ..store.store import Store
from ..transfer.breaker import Breakers

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
        self._last_remaining: dict[tuple[str, str], int] = {}
        self._breakers = Breakers()
        self._up = Gauge(
            "hubcache_upstream_up", "0 while the host's circuit is open.", ["host"], registry=self.registry
        )
        self._workers = Gauge("hubcache_workers", "Processes that speak with clients.", registry=self.registry)
        self.workers_changed(1)
        self._fills = Gauge("hubcache_fills_in_flight", "Blobs being fetched.", registry=self.registry)
        self._fill_results = Counter(
            "hubcache_fills", "Fills that ended, by result.", ["result"], registry=self.registry
        )

    def watch(self, store: Store, breakers: Breakers) -> None:
        """Show the store's numbers and the circuits' states as they are when asked for."""
        self._breakers = breakers
        numbers: list[tuple[str, str, Callable[[], float]]] = [
            ("hubcache_store_bytes", "Bytes stored or reserved for fills.", lambda: store.ledger.used),
            ("hubcache_store_capacity_bytes", "The cap on the store's bytes.", lambda: store.rooms.capacity),
            ("hubcache_store_objects", "Blobs and manifests stored.", lambda: len(store.ledger.sizes)),
            ("hubcache_store_evictions", "Objects removed by the policy since start.", lambda: store.rooms.removed),
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

    def remaining(self, host: str, credential: str) -> int | None:
        """Pulls left by the upstream's last word to this kind of credential; None when it never told."""
        return self._last_remaining.get((host, credential))

    def render(self) -> bytes:
        """The text exposition format."""
        for host, circuit in self._breakers.circuits.items():
            self._up.labels(host).set(not circuit.is_open)
        return generate_latest(self.registry)

    # -- Observer -------------------------------------------------------------------------------------------------

    def upstream_answered(self, host: str, kind: str, status: str) -> None:
        self._upstream.labels(host, kind, status).inc()

    def upstream_bytes(self, host: str, count: int) -> None:
        self._received.labels(host).inc(count)

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
        self._fill_results.labels(result).inc()
        if error is not None and not isinstance(error, StorageError):
            logger.warning("hubcache: fetching %s failed: %s", digest, error)
