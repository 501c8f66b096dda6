"""The status listener serves health, metrics and evictions, to safe host names only."""

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from hubcache.oci.errors import ConfigError, StorageError
from hubcache.operate.fleet_report import report_fleet
from hubcache.operate.metrics import Metrics
from hubcache.operate.pulls import Pulls
from hubcache.operate.status import Status
from hubcache.operate.status_page import StatusPages
from hubcache.operate.status_report import StatusReport
from hubcache.operate.traffic import Traffic
from hubcache.operate.version import version
from hubcache.setup.setup_pages import SetupPages
from hubcache.store.store import Store
from hubcache.transfer.breaker import Circuit, CircuitBreakers
from support.fleet_statuses import fleet_status
from support.ports import free_port
from support.stores import opened_store, put_blob

SETUP = SetupPages(Path(__file__), 5000, 8080)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened_store(tmp_path / "store") as opened:
        yield opened


def status_of(store: Store, metrics: Metrics | None = None, breakers: CircuitBreakers | None = None) -> Status:
    """Return the status listener of a cache with this store."""
    report = StatusReport(store, metrics or Metrics(), breakers or CircuitBreakers(), Pulls(lambda _: None))
    return Status(StatusPages(report, SETUP))


async def fetch(status: Status, path: str, **headers: str) -> tuple[int, str, str]:
    """Return status, type and text of a page; the listener runs during the request only."""
    port = free_port()
    await status.start("127.0.0.1", port)
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer,
        ):
            return answer.status, answer.headers["Content-Type"], await answer.text()
    finally:
        await status.close()


async def test_health_is_ok_and_shows_version_and_store(store: Store, tmp_path: Path) -> None:
    await put_blob(store, b"x" * 1000)
    code, kind, text = await fetch(status_of(store), "/healthz")
    assert (code, kind) == (200, "application/json; charset=utf-8")
    assert json.loads(text) == {
        "version": version(),
        "status": "ok",
        "upstreams_down": {},
        "warnings": [],
        "fleet": None,
        "store": {
            "directory": str(tmp_path / "store"),
            "problem": None,
            "bytes": 4096,
            "capacity": 64 << 20,
            "objects": 1,
            "damage": {"count": 0, "quarantined_bytes": 0, "last": None},
            "scrub": {"objects": 0, "bytes": 0, "finished_at": None, "progress": 0.0},
        },
    }


async def test_health_shows_digest_and_paths_of_the_last_damage(store: Store) -> None:
    digest = await put_blob(store, b"x" * 1000)
    path = store.blob_path(digest)
    assert path is not None
    await store.damage.quarantine(digest, path, "does not match its digest")
    _, _, text = await fetch(status_of(store), "/healthz")
    report = json.loads(text)
    assert report["status"] == "ok"
    damage = report["store"]["damage"]
    assert (damage["count"], damage["quarantined_bytes"]) == (1, 4096)
    last = damage["last"]
    assert (last["digest"], last["path"], last["why"]) == (digest, str(path), "does not match its digest")
    assert last["kept"].startswith(str(store.directory / "quarantine"))


async def test_health_with_a_failed_store_is_degraded_with_status_200(store: Store) -> None:
    """Pulls work without the store, so a load balancer must not remove the proxy."""
    store.index.staging_failed(StorageError("disk is full"))
    code, _, text = await fetch(status_of(store), "/healthz")
    assert code == 200
    assert json.loads(text)["status"] == "degraded"
    assert json.loads(text)["store"]["problem"] == "disk is full"


async def test_health_with_an_upstream_down_is_degraded_and_names_it(store: Store) -> None:
    breakers = CircuitBreakers()
    breakers.circuits.update({"up": Circuit(), "down": Circuit(3, "status 503", 1.0)})
    _, _, text = await fetch(status_of(store, breakers=breakers), "/healthz")
    assert json.loads(text)["status"] == "degraded"
    assert json.loads(text)["upstreams_down"] == {"down": "status 503"}


async def test_health_with_a_bucket_that_is_down_is_ok_with_a_warning(store: Store) -> None:
    """The cache works alone: neither a load balancer nor an operator at night has to act."""
    status = status_of(store)
    state = fleet_status(problem="connection refused")
    status._report.fleet = lambda: report_fleet(state, Traffic(), 0)
    _, _, text = await fetch(status, "/healthz")
    health = json.loads(text)
    assert health["status"] == "ok"
    assert len(health["warnings"]) == 1
    assert "connection refused" in health["warnings"][0]
    assert health["fleet"] == {"bucket": state.bucket, "problem": "connection refused", "nodes": 2}


async def test_evictions_have_size_and_reason(store: Store) -> None:
    digests = [await put_blob(store, bytes([number]) * 1000) for number in range(2)]
    for digest in digests:
        assert await store.capacity.purge(digest, store.remove)
    code, kind, text = await fetch(status_of(store), "/evictions")
    assert (code, kind) == (200, "application/json; charset=utf-8")
    removals = json.loads(text)
    assert [removal.pop("digest") for removal in removals] == [str(digest) for digest in reversed(digests)]
    for removal in removals:
        assert removal.keys() == {"at", "size", "reason", "score", "requests", "idle"}
        assert (removal["size"], removal["reason"]) == (4096, "purged")


async def test_metrics_are_in_the_text_exposition_format(store: Store) -> None:
    metrics = Metrics()
    metrics.watch(store, CircuitBreakers())
    code, kind, text = await fetch(status_of(store, metrics), "/metrics")
    assert (code, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "\nhubcache_store_usable 1.0\n" in text


async def test_unknown_path_is_404(store: Store) -> None:
    assert (await fetch(status_of(store), "/nothing"))[0] == 404


@pytest.mark.parametrize("host", ["127.0.0.1", "host.invalid", "192.0.2.1"])
async def test_address_that_cannot_be_used_is_an_error_of_one_line(store: Store, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status = status_of(store)
        with pytest.raises(ConfigError, match=f"hubcache_status: cannot listen on {host}:{port}: .+"):
            await status.start(host, port)
        await status.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1:9090", 200), ("[::1]:9090", 200), ("10.0.0.7", 200), ("localhost", 200), ("LOCALHOST.:80", 200)),
        *((socket.gethostname(), 200), ("hubcache:9090", 200), ("hubcache.ci.svc:9090", 200)),
        *(("hubcache.ci.svc.cluster.local", 200), ("cache.corp.internal", 200)),
        *(("evil.example", 421), ("evil.example:9090", 421), ("127.0.0.1.evil.example", 421), ("local.evil.com", 421)),
        *(("localhost.evil.com", 421), ("evil.com.", 421), ("xlocal.com", 421), ("[::1", 421), ("a.b", 421)),
    ],
)
async def test_only_names_outside_public_dns_are_answered(store: Store, host: str, expected: int) -> None:
    """A name that an attacker can register is refused, against DNS rebinding."""
    for path in ("/healthz", "/nothing"):
        code, _, text = await fetch(status_of(store), path, Host=host)
        assert (code == 421) is (expected == 421)
        assert code != 421 or text.count("\n") == 1


async def test_host_name_of_the_machine_is_answered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "cache.example.com")
    status = status_of(store)
    assert (await fetch(status, "/healthz", Host="cache.example.com:9090"))[0] == 200


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/setup", "text/html; charset=utf-8", "127.0.0.1:5000"),
        ("/setup/attach", "text/x-shellscript; charset=utf-8", "mirror='127.0.0.1:5000'"),
        ("/ca.crt", "application/x-pem-file", "The status listener"),
    ],
)
async def test_setup_pages_carry_the_address_that_the_client_used(
    store: Store, path: str, kind: str, words: str
) -> None:
    code, found, text = await fetch(status_of(store), path)
    assert (code, found) == (200, kind)
    assert words in text


@pytest.mark.parametrize("path", ["/setup/nothing", "/setups", "/ca.key"])
async def test_other_paths_below_setup_are_not_found(store: Store, path: str) -> None:
    assert (await fetch(status_of(store), path))[0] == 404
