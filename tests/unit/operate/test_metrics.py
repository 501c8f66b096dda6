"""Metrics count events and report states in the Prometheus text format."""

from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, FillCancelled, StorageError
from hubcache.operate import host_labels
from hubcache.operate.metrics import MAX_LIMITS, Metrics
from hubcache.store.store import Store
from hubcache.transfer.breaker import Circuit, CircuitBreakers
from prometheus_client.parser import text_string_to_metric_families
from support.metrics import value
from support.stores import opened_store, put_blob

DIGEST = Digest.of(b"x")


def test_requests_are_counted_by_kind_result_and_listener() -> None:
    metrics = Metrics()
    for kind, result, listener in (("blob", "hit", "proxy"), ("blob", "hit", "proxy"), ("blob", "hit", "mirror")):
        metrics.answered(kind, result, listener)
    assert value(metrics, "hubcache_requests_total", kind="blob", result="hit", door="proxy") == 2
    assert value(metrics, "hubcache_requests_total", kind="blob", result="hit", door="mirror") == 1
    assert value(metrics, "hubcache_requests_total", kind="blob", result="miss", door="proxy") is None


def test_bytes_are_counted_by_source() -> None:
    metrics = Metrics()
    metrics.sent("store", 10)
    metrics.sent("store", 5)
    metrics.upstream_bytes("cdn", 7)
    assert value(metrics, "hubcache_sent_bytes_total", source="store") == 15
    assert value(metrics, "hubcache_upstream_bytes_total", host="cdn") == 7


def test_upstream_requests_are_counted_by_host_kind_and_status() -> None:
    metrics = Metrics()
    metrics.upstream_answered("hub", "manifest", "200")
    metrics.upstream_answered("hub", "manifest", "error")
    name = "hubcache_upstream_requests_total"
    assert value(metrics, name, host="hub", kind="manifest", status="200") == 1
    assert value(metrics, name, host="hub", kind="manifest", status="error") == 1


def test_rate_limit_is_the_last_reported_for_each_credential() -> None:
    metrics = Metrics()
    assert metrics.remaining("hub", "anonymous") is None
    metrics.rate_limit_seen("hub", "anonymous", 100, 98)
    metrics.rate_limit_seen("hub", "anonymous", None, 97)
    metrics.rate_limit_seen("hub", "account", 200, 5)
    assert value(metrics, "hubcache_ratelimit_limit", host="hub", credential="anonymous") == 100
    assert value(metrics, "hubcache_ratelimit_remaining", host="hub", credential="anonymous") == 97
    assert metrics.remaining("hub", "anonymous") == 97
    assert metrics.remaining("hub", "account") == 5


def test_rate_limits_of_endless_registries_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_LIMITS + 1):
        metrics.rate_limit_seen("hub", "anonymous", 100, 98)
        metrics.rate_limit_seen(f"r{number}", "anonymous", 100 if number else None, 98)
    assert metrics.remaining("hub", "anonymous") == 98
    assert metrics.remaining("r1", "anonymous") is None
    assert metrics.render().count(b"\nhubcache_ratelimit_remaining{") == MAX_LIMITS
    assert metrics.render().count(b"\nhubcache_ratelimit_limit{") == MAX_LIMITS


def test_fills_are_counted_in_flight_and_by_result(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    metrics.fills_changed(3)
    metrics.fill_ended(DIGEST, None)
    metrics.fill_ended(DIGEST, StorageError("disk is full"))
    metrics.fill_ended(DIGEST, BadUpstream("content does not match its digest"))
    assert value(metrics, "hubcache_fills_in_flight") == 3
    for result in ("stored", "not_storable", "failed"):
        assert value(metrics, "hubcache_fills_total", result=result) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"hubcache: fetching {DIGEST} failed: content does not match its digest"
    ]
    metrics.fill_ended(DIGEST, FillCancelled("no client waits for the blob any more"))
    assert value(metrics, "hubcache_fills_total", result="abandoned") == 1
    assert len(caplog.records) == 1, "an abandoned fill is not logged"


async def test_store_is_reported_as_it_is_at_the_time_of_the_request(tmp_path: Path) -> None:
    async with opened_store(tmp_path, 64 << 20) as store:
        metrics = Metrics()
        metrics.watch(store, CircuitBreakers())
        assert value(metrics, "hubcache_store_bytes") == 0
        await put_blob(store, b"x" * 1000)
        assert value(metrics, "hubcache_store_bytes") == 4096
        assert value(metrics, "hubcache_store_objects") == 1
        assert value(metrics, "hubcache_store_capacity_bytes") == 64 << 20
        assert value(metrics, "hubcache_store_usable") == 1


def test_store_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store, metrics = Store(tmp_path / "file", 1 << 20), Metrics()
    with pytest.raises(StorageError):
        store.open()
    metrics.watch(store, CircuitBreakers())
    assert value(metrics, "hubcache_store_usable") == 0


def test_circuit_breaker_of_each_host_is_reported(tmp_path: Path) -> None:
    metrics, breakers = Metrics(), CircuitBreakers()
    metrics.watch(Store(tmp_path, 1 << 20), breakers)
    breakers.circuits.update({"up": Circuit(), "down": Circuit(3, "status 503", 1.0)})
    assert value(metrics, "hubcache_upstream_up", host="up") == 1
    assert value(metrics, "hubcache_upstream_up", host="down") == 0


def series(metrics: Metrics) -> set[str]:
    """Return the hosts that have any series."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {sample.labels["host"] for family in families for sample in family.samples if "host" in sample.labels}


def test_hosts_beyond_the_maximum_share_one_label(tmp_path: Path) -> None:
    """A registry that redirects to ever new hosts must not add series without limit."""
    metrics, breakers = Metrics(), CircuitBreakers()
    metrics.watch(Store(tmp_path, 1 << 20), breakers)
    for number in range(1000):
        metrics.upstream_answered(f"cdn{number}", "blob", "200")
        metrics.upstream_bytes(f"cdn{number}", 10)
        breakers.circuits[f"cdn{number}"] = Circuit(3, "status 503", 1.0 if number == 999 else None)
    assert len(series(metrics)) == host_labels.MAX_HOSTS + 1
    name = "hubcache_upstream_requests_total"
    assert value(metrics, name, host="cdn1", kind="blob", status="200") == 1
    assert value(metrics, name, host=host_labels.OTHER, kind="blob", status="200") == 1000 - host_labels.MAX_HOSTS
    assert value(metrics, "hubcache_upstream_bytes_total", host=host_labels.OTHER) == 10 * (
        1000 - host_labels.MAX_HOSTS
    )
    assert value(metrics, "hubcache_upstream_up", host=host_labels.OTHER) == 0


def test_undefined_status_codes_share_one_label() -> None:
    metrics = Metrics()
    for status in range(600, 999):
        metrics.upstream_answered("hub", "blob", str(status))
    assert value(metrics, "hubcache_upstream_requests_total", host="hub", kind="blob", status="other") == 399


def test_host_without_requests_for_long_loses_its_series() -> None:
    now = 0.0
    metrics = Metrics()
    metrics._hosts = host_labels.Hosts(metrics._forget_host, lambda: now)
    metrics.upstream_answered("hub", "blob", "307")
    metrics.upstream_answered("cdn", "blob", "200")
    metrics.upstream_bytes("cdn", 10)
    now = host_labels.UNUSED_SECONDS - 1
    metrics.upstream_answered("hub", "blob", "307")
    now += 2
    assert series(metrics) == {"hub"}
    assert value(metrics, "hubcache_upstream_requests_total", host="hub", kind="blob", status="307") == 2


def test_two_objects_in_one_process_count_separately() -> None:
    first, second = Metrics(), Metrics()
    first.answered("blob", "hit", "proxy")
    assert value(second, "hubcache_requests_total", kind="blob", result="hit", door="proxy") is None
