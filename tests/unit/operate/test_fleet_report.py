"""The state of a fleet as JSON and as metrics."""

import json

from hubcache.operate.fleet_report import FleetCollector, report_fleet
from hubcache.operate.traffic import Traffic
from prometheus_client import CollectorRegistry, generate_latest
from support.fleet_statuses import fleet_status

TRAFFIC = Traffic(bytes=10 << 30, bytes_from_store=7 << 30, upstream_bytes=1 << 20)


def test_report_is_json_with_the_bytes_of_each_tier() -> None:
    report = json.loads(json.dumps(report_fleet(fleet_status(), TRAFFIC, 1000)))
    assert list(report["tiers"].items()) == [
        ("store", 7 << 30),
        ("bucket", 3 << 30),
        ("peer", 1 << 30),
        ("upstream", 1 << 20),
    ]
    assert [node["is_own"] for node in report["nodes"]] == [True, False]
    assert report["sweep"]["by"] == "two-00decade"
    assert report["uploads"]["refused"] == 1


def metrics(**changes: object) -> dict[str, float]:
    """Return the values of all series."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(lambda: fleet_status(**changes), TRAFFIC))
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_metrics_show_the_fleet() -> None:
    found = metrics()
    assert found['hubcache_bucket_requests_total{kind="get",outcome="absent"}'] == 100
    assert found['hubcache_tier_bytes_total{tier="store"}'] == 7 << 30
    assert found['hubcache_tier_bytes_total{tier="peer"}'] == 1 << 30
    assert found['hubcache_bucket_uploads_total{outcome="failed"}'] == 3
    assert found["hubcache_bucket_uploads_queued"] == 2
    assert found["hubcache_bucket_uploaded_bytes_total"] == 2 << 30
    assert found["hubcache_bucket_up"] == 1
    assert found["hubcache_fleet_nodes"] == 2
    assert found["hubcache_fleet_leases"] == 1
    assert found["hubcache_bucket_bytes"] == 60 << 30
    assert found["hubcache_bucket_capacity_bytes"] == 100 << 30
    assert found["hubcache_bucket_sweep_timestamp_seconds"] == 1_700_000_000


def test_metrics_show_a_bucket_that_is_down_and_was_never_swept() -> None:
    found = metrics(problem="connection refused", sweep=None)
    assert found["hubcache_bucket_up"] == 0
    assert found["hubcache_bucket_sweep_timestamp_seconds"] == found["hubcache_bucket_bytes"] == 0
