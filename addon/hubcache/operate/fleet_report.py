"""Describes a fleet in JSON types, and its Prometheus metrics."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..fleet.fleet_status import FleetStatus
from ..fleet.request_cost import PRICES, request_cost
from .traffic import Traffic


def report_fleet(status: FleetStatus, traffic: Traffic, pulls: int) -> dict[str, Any]:
    """Return the state of a fleet as a node sees it, with all content by the tier that it came from, in bytes.

    The tier `store` has the bytes that clients received from the store of the node; the others have bytes that the node
    received from there. `pulls` is the number of pulls since the start.
    """
    all_requests = {kind: sum(outcomes.values()) for kind, outcomes in status.requests.items()}
    of_pulls = request_cost(status.requests_of_pulls, status.uploads.bytes)
    cost = {
        "prices": PRICES,
        "dollars": request_cost(all_requests, status.uploads.bytes),
        "dollars_of_pulls": of_pulls,
        "pulls": pulls,
        "dollars_per_million_pulls": of_pulls / pulls * 1e6 if pulls else None,
    }
    return asdict(status) | {"tiers": tiers(status, traffic), "cost": cost}


def tiers(status: FleetStatus, traffic: Traffic) -> dict[str, int]:
    """Return the bytes of content by tier, from the nearest to the farthest."""
    return {"store": traffic.bytes_from_store} | status.received | {"upstream": traffic.upstream_bytes}


class FleetCollector(Collector):
    """The metrics of a fleet as a node sees it; `status` returns the present state."""

    def __init__(self, status: Callable[[], FleetStatus], traffic: Traffic) -> None:
        self._status = status
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        status = self._status()
        yield _gauge("hubcache_bucket_up", "1 while the bucket answers, else 0.", status.problem is None)
        requests = CounterMetricFamily(
            "hubcache_bucket_requests",
            "Requests to the bucket by kind (get, put, delete, list, upload), and outcome (ok, absent, conflict or "
            "error).",
            labels=["kind", "outcome"],
        )
        for kind, outcomes in status.requests.items():
            for outcome, count in outcomes.items():
                requests.add_metric([kind, outcome], count)
        yield requests
        received = CounterMetricFamily(
            "hubcache_tier_bytes",
            "Bytes of content by tier: sent to clients from the store, and received from the bucket, peers (other "
            "nodes of the fleet) and upstreams.",
            labels=["tier"],
        )
        for tier, count in tiers(status, self._traffic).items():
            received.add_metric([tier], count)
        yield received
        yield from _uploads(status)
        yield _gauge("hubcache_fleet_nodes", "Nodes of the fleet whose heartbeats arrive.", len(status.nodes))
        yield _gauge("hubcache_fleet_leases", "Leases that this node holds.", len(status.leases))
        yield _gauge("hubcache_bucket_capacity_bytes", "Bytes that the fleet may store in the bucket.", status.capacity)
        sweep = status.sweep
        yield _gauge("hubcache_bucket_bytes", "Bytes in the bucket after the last sweep.", sweep.bytes if sweep else 0)
        yield _gauge(
            "hubcache_bucket_objects", "Objects in the bucket after the last sweep.", sweep.objects if sweep else 0
        )
        yield _gauge(
            "hubcache_bucket_sweep_timestamp_seconds", "Time of the last sweep; 0 = unknown.", sweep.at if sweep else 0
        )


def _uploads(status: FleetStatus) -> Iterator[Metric]:
    uploads = CounterMetricFamily(
        "hubcache_bucket_uploads",
        "Uploads to the bucket that ended, by outcome (stored, refused: no space in the bucket, failed).",
        labels=["outcome"],
    )
    for outcome in ("stored", "refused", "failed"):
        uploads.add_metric([outcome], getattr(status.uploads, outcome))
    yield uploads
    yield _gauge("hubcache_bucket_uploads_queued", "Uploads that wait or run.", status.uploads.queued)
    yield CounterMetricFamily(
        "hubcache_bucket_uploaded_bytes", "Bytes that were uploaded to the bucket.", value=status.uploads.bytes
    )


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=float(value))
