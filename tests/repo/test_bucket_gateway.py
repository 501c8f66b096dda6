"""The gateway in front of SeaweedFS forwards the requests of an S3 client, and breaks them as a test wants."""

import threading
from collections.abc import Iterator
from datetime import timedelta

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store
from support.e2e.bucket_gateway import BucketFault, BucketGateway, full
from support.e2e.seaweedfs import BUCKET, BucketView, SeaweedFS, running_seaweedfs
from support.standin import random_bytes


@pytest.fixture(scope="module")
def seaweedfs() -> Iterator[SeaweedFS]:
    with running_seaweedfs() as running:
        yield running


@pytest.fixture
def gateway(seaweedfs: SeaweedFS) -> Iterator[BucketGateway]:
    with BucketGateway(seaweedfs.url) as running:
        yield running


@pytest.fixture
def view(seaweedfs: SeaweedFS) -> BucketView:
    return BucketView(seaweedfs)


@pytest.fixture
def store(gateway: BucketGateway, view: BucketView) -> S3Store:
    """A client that uses the gateway, and does not repeat requests."""
    return S3Store(
        BUCKET,
        prefix=view.url.rpartition("/")[2],
        endpoint=gateway.url,
        access_key_id=view.seaweedfs.access_key,
        secret_access_key=view.seaweedfs.secret_key,
        region="us-east-1",
        client_options={"allow_http": True, "timeout": timedelta(seconds=20)},
        retry_config={"max_retries": 0},
    )


def test_requests_are_forwarded_and_recorded(store: S3Store, gateway: BucketGateway, view: BucketView) -> None:
    data = random_bytes(100_000)
    created = obstore.put(store, "lease/a b", b"1", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "lease/a b", b"2", mode="create")
    obstore.put(store, "lease/a b", b"2", mode={"e_tag": created["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(store, "lease/a b", b"3", mode={"e_tag": created["e_tag"]})
    obstore.put(store, "blob/x", data)
    obstore.put(store, "node/x", b"")
    assert bytes(obstore.get_range(store, "blob/x", start=10, end=99_990)) == data[10:99_990]
    assert view.get("lease/a b") == b"2"
    assert (
        [entry["path"] for page in obstore.list(store, "blob") for entry in page]
        == view.list_keys("blob")
        == ["blob/x"]
    )
    obstore.delete(store, ["blob/x"])
    assert view.list_keys() == ["lease/a b", "node/x"]
    pulls = ["PUT lease/a b"] * 4 + ["PUT blob/x", "GET blob/x", "GET blob/", "POST blob/x"]
    assert gateway.requests_of_pulls() == pulls
    assert len(gateway.requests(kind="lease", method="PUT", status=200)) == 2
    assert [record.sent for record in gateway.requests(repo="blob/x", method="GET")] == [99_980]


def test_upload_in_parts_is_forwarded(store: S3Store, view: BucketView) -> None:
    data = random_bytes(11 << 20)
    obstore.put(store, "blob/parts", data, chunk_size=5 << 20, use_multipart=True)
    assert view.get("blob/parts") == data


@pytest.mark.parametrize(
    "fault", [BucketFault(status=503), full(), BucketFault(reset=True), BucketFault(loses_answer=True)]
)
def test_fault_makes_a_request_fail_until_it_is_removed(
    store: S3Store, gateway: BucketGateway, view: BucketView, fault: BucketFault
) -> None:
    gateway.faults.add(fault)
    with pytest.raises(BaseError):
        obstore.put(store, "blob/x", b"1")
    assert view.list_keys() == (["blob/x"] if fault.loses_answer else [])
    gateway.repair()
    obstore.put(store, "blob/x", b"1")


def test_body_is_cut_off_or_slow(store: S3Store, gateway: BucketGateway) -> None:
    obstore.put(store, "blob/x", random_bytes(50_000))
    gateway.faults.add(BucketFault(kind="blob", times=1, close_after=20_000))
    with pytest.raises(BaseError):
        obstore.get(store, "blob/x").bytes()
    paused = gateway.faults.add(BucketFault(kind="blob", pause_after=20_000))
    body = obstore.get(store, "blob/x").stream(min_chunk_size=20_000)
    assert len(next(body)) == 20_000
    gateway.faults.remove(paused)
    assert sum(map(len, body)) == 30_000


def test_requests_wait_during_a_pause(store: S3Store, gateway: BucketGateway) -> None:
    gateway.pause()
    request = threading.Thread(target=obstore.put, args=(store, "blob/x", b"1"))
    request.start()
    while not gateway.log:
        assert request.is_alive()
    assert gateway.log[0].status == 0
    gateway.resume()
    request.join(20)
    assert gateway.log[0].status == 200


def test_stopped_gateway_refuses_connections(store: S3Store, gateway: BucketGateway) -> None:
    obstore.put(store, "blob/x", b"1")
    gateway.stop()
    with pytest.raises(BaseError):
        obstore.get(store, "blob/x")
    gateway.start()
    assert bytes(obstore.get(store, "blob/x").bytes()) == b"1"


def test_lying_gateway_reports_success_of_each_conditional_write(
    store: S3Store, gateway: BucketGateway, view: BucketView
) -> None:
    gateway.faults.add(BucketFault(denies_conflicts=True))
    tags = [obstore.put(store, "probe/x", b"%d" % number, mode="create")["e_tag"] for number in range(2)]
    assert obstore.put(store, "probe/x", b"9", mode={"e_tag": tags[1]})["e_tag"]
    assert view.get("probe/x") == b"0"
