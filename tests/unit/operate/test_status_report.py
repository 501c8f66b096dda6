"""The status report collects what the other parts know, and omits from the public one what is not public."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hubcache.decide.records import Visibility
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.oci.registry import HUB_HOST
from hubcache.operate.fleet_report import report_fleet
from hubcache.operate.metrics import Metrics
from hubcache.operate.pull import Pull
from hubcache.operate.pulls import Pulls
from hubcache.operate.served_request import ServedRequest
from hubcache.operate.status_report import MAX_EVICTIONS, MAX_FILLS, MAX_IMAGES, MAX_PULLS, StatusReport
from hubcache.serve.messages import Listener, Result
from hubcache.store.store import Store
from hubcache.transfer.breaker import Circuit, CircuitBreakers
from hubcache.transfer.fills import FillProgress
from support.fleet_statuses import fleet_status
from support.stores import opened_store, put_blob

PUBLIC, SECRET = "library/debian", "acme/secret"
DIGEST = Digest.of(b"layer")


@dataclass
class Parts:
    """A report and the parts from which it collects."""

    store: Store
    metrics: Metrics = field(default_factory=Metrics)
    breakers: CircuitBreakers = field(default_factory=CircuitBreakers)
    pulls: Pulls = field(default_factory=lambda: Pulls(lambda _: None))
    fills: list[FillProgress] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.report = StatusReport(self.store, self.metrics, self.breakers, self.pulls, lambda: self.fills)

    def end(self, repository: str, image: str, result: str = "hit") -> None:
        """End a pull."""
        pull = Pull("10.9.8.7", "mirror", image, HUB_HOST, repository, time.time(), sent=100, result=result)
        self.pulls.recent.append(pull)
        self.pulls.on_ended(pull)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with opened_store(tmp_path / "store") as store:
        await store.registries.put_visibility(HUB_HOST, PUBLIC, Visibility(True, time.time()))
        await store.registries.put_visibility(HUB_HOST, SECRET, Visibility(False, time.time()))
        yield Parts(store)


def fill(repository: str, digest: Digest = DIGEST) -> FillProgress:
    return FillProgress(digest, 1000, 10, 2, HUB_HOST, repository, time.time(), False)


def served(repository: str, digest: Digest) -> ServedRequest:
    """Return the record of a blob that a client received."""
    return ServedRequest(
        *(time.time(), "10.9.8.7", Listener.MIRROR, "blob", Result.HIT, 200, HUB_HOST, repository, str(digest)),
        *(100, 100, 0.1, 0.2, True, False),
    )


def test_snapshot_is_valid_json_with_all_keys(parts: Parts) -> None:
    snapshot = parts.report.snapshot(public=False)
    assert json.loads(json.dumps(snapshot, allow_nan=False)) == snapshot
    assert snapshot.keys() == parts.report.snapshot(public=True).keys()
    assert snapshot["ratio"].keys() == {"hour", "day", "week"}
    assert (snapshot["problems"], snapshot["workers"], snapshot["started"] <= snapshot["now"]) == ([], 1, True)


def test_traffic_is_in_the_ratios_and_in_the_history_at_once(parts: Parts) -> None:
    parts.metrics.answered("blob", "hit", "proxy", 3)
    parts.metrics.sent("store", 500)
    snapshot = parts.report.snapshot(public=False)
    for name in ("hour", "day", "week"):
        assert snapshot["ratio"][name]["hits"] == 3
    for name in ("minutes", "hours"):
        assert [point["bytes_from_store"] for point in snapshot["history"][name]] == [500]


def test_rate_limits_and_upstreams_are_listed(parts: Parts) -> None:
    parts.metrics.rate_limit_seen(HUB_HOST, "anonymous", 100, 76)
    parts.metrics.rate_limit_seen(HUB_HOST, "anonymous", None, 75)
    parts.breakers.circuits.update({"b": Circuit(), "a": Circuit(3, "status 503", 1.0)})
    snapshot = parts.report.snapshot(public=True)
    (limit,) = snapshot["ratelimit"]
    assert (limit["registry"], limit["credential"], limit["limit"], limit["remaining"]) == (
        *(HUB_HOST, "anonymous", 100, 75),
    )
    assert snapshot["upstreams"] == [
        {"registry": "a", "is_up": False, "reason": "status 503"},
        {"registry": "b", "is_up": True, "reason": None},
    ]
    assert len(snapshot["problems"]) == 1


def test_public_snapshot_names_no_client(parts: Parts) -> None:
    parts.end(PUBLIC, "debian:12")
    assert "10.9.8.7" in json.dumps(parts.report.snapshot(public=False))
    public = parts.report.snapshot(public=True)
    assert "10.9.8.7" not in json.dumps(public)
    assert public["pulls"]["recent"][0]["image"] == "debian:12"


async def test_public_snapshot_names_only_repositories_that_are_public(parts: Parts) -> None:
    """Not even one that a client asked for in vain: its name may be private, too."""
    parts.end(SECRET, "acme/secret:1")
    parts.end("acme/unknown", "acme/unknown:1", result="failed")
    parts.end(PUBLIC, "debian:12")
    parts.fills += [fill(SECRET), fill("acme/unknown"), fill(PUBLIC)]
    for repository in (SECRET, PUBLIC):
        digest = await put_blob(parts.store, repository.encode())
        parts.report.request_ended(served(repository, digest))
        assert await parts.store.capacity.purge(digest, parts.store.remove)
    full, public = parts.report.snapshot(public=False), parts.report.snapshot(public=True)
    assert "acme" in json.dumps(full)
    assert "acme" not in json.dumps(public)
    assert str(Digest.of(SECRET.encode())) in json.dumps(full)
    assert str(Digest.of(SECRET.encode())) not in json.dumps(public)
    assert [each["digest"] for each in public["fills"]] == [None, None, str(DIGEST)]
    for snapshot, names in ((full, ["acme/secret", "acme/unknown", "debian"]), (public, [None, None, "debian"])):
        assert [each["image"] for each in snapshot["fills"]] == names
    assert [each["image"] for each in full["evictions"]] == ["debian", "acme/secret"]
    assert [each["image"] for each in public["evictions"]] == ["debian", None]
    assert [each["name"] for each in public["images"]] == ["debian:12"]


async def test_public_snapshot_names_no_repository_while_the_store_cannot_be_read(parts: Parts) -> None:
    parts.end(PUBLIC, "debian:12")
    await parts.store.index.close()
    assert "debian" in json.dumps(parts.report.snapshot(public=False))
    assert "debian" not in json.dumps(parts.report.snapshot(public=True))


async def test_public_snapshot_has_no_paths(parts: Parts) -> None:
    directory = str(parts.store.directory)
    path = parts.store.blob_path(await put_blob(parts.store, b"x" * 1000))
    assert path is not None
    await parts.store.damage.quarantine(Digest.of(b"x" * 1000), path, "does not match its digest")
    parts.store.index.staging_failed(StorageError(f"{directory} is full"))
    assert directory in json.dumps(parts.report.snapshot(public=False))
    assert len(parts.report.snapshot(public=True)["problems"]) == 2
    assert directory not in json.dumps(parts.report.snapshot(public=True))


async def test_public_snapshot_names_neither_the_bucket_nor_the_nodes(parts: Parts) -> None:
    state = fleet_status(problem="no route to 10.0.0.9")
    parts.report.fleet = lambda: report_fleet(state, parts.metrics.traffic, 0)
    full, public = (json.dumps(parts.report.snapshot(public=public)) for public in (False, True))
    for secret in ("s3://caches", "10.0.0.", "one-00c0ffee"):
        assert secret in full
        assert secret not in public
    assert len(parts.report.snapshot(public=True)["problems"]) == 1


async def test_lists_are_bounded_and_the_newest_come_first(parts: Parts) -> None:
    for number in range(150):
        parts.end(PUBLIC, f"debian:{number}")
        parts.fills.append(replace(fill(PUBLIC, Digest.of(str(number).encode())), started=float(number)))
        parts.report.request_ended(served(PUBLIC, await put_blob(parts.store, str(number).encode())))
    for digest in list(parts.store.usage.sizes):
        assert await parts.store.capacity.purge(digest, parts.store.remove)
    snapshot = parts.report.snapshot(public=False)
    assert [len(snapshot[name]) for name in ("fills", "images", "evictions")] == [MAX_FILLS, MAX_IMAGES, MAX_EVICTIONS]
    assert [pull["image"] for pull in snapshot["pulls"]["recent"]] == [f"debian:{149 - n}" for n in range(MAX_PULLS)]
    assert [each["started"] for each in snapshot["fills"]] == sorted(float(number) for number in range(MAX_FILLS))
    assert len(parts.report.evictions()) == 150
