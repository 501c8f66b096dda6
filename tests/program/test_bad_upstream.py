"""An upstream that fails or sends wrong content: clients get an error in the form of the spec; nothing wrong is stored.

Time-outs are tested in unit/transfer/test_upstream.py and engine/test_faults.py, where they are short.
"""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.http_client import wait_until
from support.program import LISTENERS, Program, RegistryClient, program_fixtures
from support.standin import Fault, Image, random_bytes
from support.standin.media import OCI_MANIFEST

program, client = program_fixtures(hubcache_tag_ttl="0", hubcache_negative_ttl="0")

HTML = "<html><body>We are down for maintenance</body></html>"
UNAVAILABLE = (503, "UNAVAILABLE")
BAD = (502, "UNAVAILABLE")


@pytest.fixture
def clients(program: Program) -> Iterator[list[RegistryClient]]:
    """Clients of both listeners in one test, because an open circuit takes a second or two to close."""
    program.reset()
    yield [program.client(name) for name in LISTENERS]
    program.assert_no_errors()


def repair(client: RegistryClient) -> None:
    """Remove all faults, and wait until all circuits are closed."""
    client.hub.faults.clear()
    client.program.wait_for_upstreams()


def described(value: object) -> str:
    """Return the id of a parameter: the fields of a fault that are set, or the expected status."""
    if not isinstance(value, Fault):
        return str(value[0]) if isinstance(value, tuple) else str(value)
    fields = {name: one for name, one in vars(value).items() if one != getattr(Fault(), name) and name != "release"}
    return ",".join(f"{name}={str(one)[:20]}" for name, one in fields.items())


def image(client: RegistryClient, size: int = 300_000) -> Image:
    return client.hub.image(client.repo, "latest", [random_bytes(size, client.repo)])


# -- manifests


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=404), (404, "MANIFEST_UNKNOWN")),
        (Fault(status=404, body=HTML), (404, "MANIFEST_UNKNOWN")),
        (Fault(status=400, body={"errors": [{"code": "TAG_INVALID", "message": "no"}]}), BAD),
        (Fault(status=418, body="teapot"), BAD),
        (Fault(status=204), BAD),
        (Fault(status=500), UNAVAILABLE),
        (Fault(status=503, body=HTML), UNAVAILABLE),
        (Fault(status=200, body=HTML), BAD),
        (Fault(status=200, body="", content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body="not JSON", content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body="[1, 2]", content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body='{"layers": [{"digest": "x"}]}', content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body='{"layers": 5}', content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body="[" * 100_000, content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body=b" " * ((4 << 20) + 1), content_type=OCI_MANIFEST), BAD),
        (Fault(redirect="loop"), BAD),
        (Fault(redirect="ftp://example.com/"), BAD),
        (Fault(redirect="http://[bad"), BAD),
        (Fault(reset=True), UNAVAILABLE),
        (Fault(close_after=0), UNAVAILABLE),
        (Fault(close_after=50), UNAVAILABLE),
        (Fault(corrupt_at=20), BAD),
        (Fault(length=10_000), UNAVAILABLE),
        (Fault(headers={"Docker-Content-Digest": "sha256:nonsense"}), BAD),
        (Fault(headers={"Docker-Content-Digest": "sha256:" + "0" * 64}), BAD),
        (Fault(status=200, body=b"x", headers={"Content-Encoding": "gzip"}), BAD),
    ],
    ids=described,
)
def test_failed_manifest_is_an_error_that_is_not_cached(
    clients: list[RegistryClient], fault: Fault, expected: tuple[int, str]
) -> None:
    """The fault is in the answer to a GET by tag. Without the fault the next pull succeeds."""
    images = [image(client) for client in clients]
    hit = clients[0].hub.faults.add(replace(fault, kind="manifest", method="GET"))
    for client in clients:
        assert client.manifest("latest").failure == expected
    assert hit.hits >= 1
    repair(clients[0])
    for client, current in zip(clients, images, strict=True):
        assert client.manifest("latest").body == current.manifest
        assert client.manifest(current.digest).body == current.manifest


def test_manifest_with_another_digest_is_refused(client: RegistryClient) -> None:
    current = image(client)
    other = json.dumps({"other": client.repo}).encode()
    client.hub.manifest(client.repo, current.digest, other, OCI_MANIFEST)
    assert client.manifest(current.digest).failure == BAD


def test_bytes_after_the_content_length_are_no_part_of_the_manifest(client: RegistryClient) -> None:
    current = image(client)
    hit = client.hub.faults.add(Fault(kind="manifest", extra=1000))
    assert client.manifest("latest").body == current.manifest
    assert hit.hits >= 1
    repair(client)
    assert client.manifest("latest").body == current.manifest


@pytest.mark.parametrize(("status", "expected"), [(401, (401, "UNAUTHORIZED")), (403, (403, "DENIED"))])
def test_refusal_is_passed_on_by_the_proxy_and_is_404_at_the_mirror(
    client: RegistryClient, status: int, expected: tuple[int, str]
) -> None:
    current = image(client)
    hit = client.hub.faults.add(Fault(kind="[mb]*", status=status, body=HTML if status == 403 else b""))
    for answer in (client.manifest("latest"), client.manifest(current.digest), client.blob(current.layers[0])):
        assert answer.failure == (expected if client.is_proxy else (404, "MANIFEST_UNKNOWN"))
        if expected[0] == 401 and client.is_proxy:
            assert f"repository:{client.repo}:pull" in answer.headers["www-authenticate"]
    assert hit.hits <= 9


def test_retries_during_a_rate_limit_get_its_retry_after_and_no_request_upstream(client: RegistryClient) -> None:
    """containerd retries five times without a pause."""
    current = image(client)
    body = "Too Many Requests (HAP429)."
    client.hub.faults.add(Fault(kind="manifest", status=429, body=body, headers={"Retry-After": "3"}))
    answers = [client.manifest("latest") for _ in range(5)]
    assert {answer.failure for answer in answers} == {(429, "TOOMANYREQUESTS")}
    seconds = [int(answer.headers["retry-after"]) for answer in answers]
    assert seconds == sorted(seconds, reverse=True)
    assert (seconds[0], seconds[-1] > 0) == (3, True)
    assert client.hub.count(kind="manifest") <= 2
    client.hub.faults.clear()
    wait_until(lambda: client.manifest("latest").body == current.manifest)


# -- blobs


@pytest.mark.parametrize("kind", ["blob", "cdn"])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=404), (404, "BLOB_UNKNOWN")),
        (Fault(status=418, body="teapot"), BAD),
        (Fault(status=500), UNAVAILABLE),
        (Fault(status=503, body=HTML), UNAVAILABLE),
        (Fault(redirect="loop"), BAD),
        (Fault(reset=True), UNAVAILABLE),
        (Fault(status=200, body=b"x", headers={"Content-Encoding": "gzip"}), BAD),
    ],
    ids=described,
)
def test_failed_blob_is_an_error_that_is_not_cached(
    clients: list[RegistryClient], kind: str, fault: Fault, expected: tuple[int, str]
) -> None:
    digests = [image(client).layers[0] for client in clients]
    hit = clients[0].hub.faults.add(replace(fault, kind=kind))
    if kind == "cdn" and expected[0] in (404, 502) and fault.status not in (None, 200):
        expected = UNAVAILABLE  # a CDN does not decide whether a blob exists
    for client, digest in zip(clients, digests, strict=True):
        assert client.blob(digest).failure == expected
    assert hit.hits >= 1
    repair(clients[0])
    for client, digest in zip(clients, digests, strict=True):
        assert client.blob(digest).body == random_bytes(300_000, client.repo)


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(corrupt_at=0),
        Fault(corrupt_at=299_999),
        Fault(status=200, body=HTML),
        Fault(status=200, body=b""),
        Fault(status=200, body=b"x" * 300_000),
        Fault(status=200, body=b"x" * 400_000),
        Fault(chunked=True, extra=1000),
        Fault(length=200_000),
        Fault(length=400_000),
    ],
    ids=described,
)
def test_wrong_body_is_never_complete_and_never_stored(
    client: RegistryClient, fault: Fault, with_manifest: bool
) -> None:
    """A stored manifest states the size of the blob, or does not."""
    digest, data = image(client).layers[0], random_bytes(300_000, client.repo)
    if with_manifest:
        client.manifest("latest")
    client.wait_until_stored()
    stored = client.program.health["store"]["objects"]
    hit = client.hub.faults.add(replace(fault, kind="cdn"))
    answer = client.blob(digest)
    assert hit.hits >= 1
    if answer.status == 200:
        assert not answer.complete or answer.body == data
    else:
        assert answer.failure in (BAD, UNAVAILABLE)
    client.wait_until_stored()
    if not answer.complete:
        assert client.program.health["store"]["objects"] == stored
    repair(client)
    assert client.blob(digest).body == data


def test_broken_transfer_is_resumed_with_a_range(client: RegistryClient) -> None:
    digest, data = image(client, 1_000_000).layers[0], random_bytes(1_000_000, client.repo)
    client.hub.faults.add(Fault(kind="cdn", close_after=400_000, times=2))
    answer = client.blob(digest)
    assert (answer.complete, answer.body == data) == (True, True)
    ranges = [record.header("Range") for record in client.hub.requests(kind="cdn")]
    assert ranges[0] is None
    starts = [int(str(one).removeprefix("bytes=").rstrip("-")) for one in ranges[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] <= 400_000
    assert starts[0] < starts[1] <= starts[0] + 400_000


def test_broken_transfer_is_resumed_when_the_upstream_ignores_ranges(client: RegistryClient) -> None:
    digest, data = image(client, 1_000_000).layers[0], random_bytes(1_000_000, client.repo)
    client.hub.faults.add(Fault(kind="cdn", close_after=400_000, times=1))
    client.hub.faults.add(Fault(kind="cdn", status=200, body=data, content_type="application/octet-stream"))
    answer = client.blob(digest)
    assert (answer.complete, answer.body == data) == (True, True)


def test_blob_whose_size_is_not_that_of_the_manifest_is_refused(client: RegistryClient) -> None:
    digest = client.hub.blob(client.repo, b"12345")
    document = {"schemaVersion": 2, "layers": [{"digest": digest, "size": 6}]}
    client.hub.manifest(client.repo, "latest", json.dumps(document).encode(), OCI_MANIFEST)
    assert client.manifest("latest").status == 200
    answer = client.blob(digest)
    assert answer.failure == BAD
    assert answer.error["detail"]["expected"] == 6


# -- all services


def failed_requests(client: RegistryClient) -> float:
    """Return the number of the program's requests without a response, except for probes."""
    name = "hubcache_upstream_requests_total"
    metric = client.program.metric
    return metric(name, status="error") - metric(name, status="error", kind="probe")


def test_stored_image_is_served_without_waiting_for_a_blackholed_upstream(clients: list[RegistryClient]) -> None:
    """This test uses the time-outs of production. The first client of a stale tag waits for less than any of them."""
    first = clients[0]
    current = image(first)
    assert first.manifest("latest").status == first.blob(current.layers[0]).status == 200
    first.wait_until_stored()
    first.hub.blackhole()
    answer = first.manifest("latest")
    assert answer.body == current.manifest
    assert 'detail="upstream is slow"' in answer.headers["cache-status"], "after a time-out it would be the reason"
    wait_until(lambda: first.program.health["upstreams_down"])
    failed = failed_requests(first)
    for client in clients:
        for _ in range(5):
            assert client.manifest("latest", repo=first.repo).body == current.manifest
            assert client.blob(current.layers[0], repo=first.repo).status == 200
        assert client.manifest("other", repo=first.repo).failure == UNAVAILABLE
        assert client.request("POST", f"/v2/{first.repo}/blobs/uploads/").failure == UNAVAILABLE
    assert failed_requests(first) == failed, "no further request was sent, and so no client waited for a time-out"
    first.program.reset()


# -- token service


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=500), UNAVAILABLE),
        (Fault(status=200, body=HTML), UNAVAILABLE),
        (Fault(status=200, body="{}"), UNAVAILABLE),
        (Fault(status=200, body='{"token": 5}'), UNAVAILABLE),
        (Fault(status=200, body='"token"'), UNAVAILABLE),
        (Fault(status=404, body="404 page not found"), UNAVAILABLE),
        (Fault(status=429, body="slow down", headers={"Retry-After": "1"}), (429, "TOOMANYREQUESTS")),
        (Fault(reset=True), UNAVAILABLE),
    ],
    ids=described,
)
def test_failed_token_service_is_an_error_that_is_not_cached(
    clients: list[RegistryClient], fault: Fault, expected: tuple[int, str]
) -> None:
    images = [image(client) for client in clients]
    clients[0].hub.faults.add(replace(fault, kind="token"))
    for client in clients:
        assert client.manifest("latest").failure == expected
    repair(clients[0])
    if fault.status == 429:
        wait_until(lambda: clients[0].manifest("latest").status == 200)
    for client, current in zip(clients, images, strict=True):
        assert client.manifest("latest").body == current.manifest


def test_token_that_the_registry_refuses_is_replaced(client: RegistryClient) -> None:
    current = image(client)
    client.manifest("latest")
    client.hub.accounts.revoke()
    client.hub.reset_log()
    assert client.manifest("latest").body == current.manifest
    assert client.hub.count(kind="token") == 1
