"""Answers with blobs at both listeners: bytes, headers, ranges, conditions; and blobs in several repositories."""

import pytest
from support.program import Program, RegistryClient, program_fixtures
from support.standin import Fault, Synthetic, random_bytes

program, client = program_fixtures(hubcache_tag_ttl="600")

SIZE = 1_300_000
ABSENT = "sha256:" + "0" * 64
RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=10-19", 10, 20),
    ("bytes=600000-", 600_000, SIZE),
    (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
    ("bytes=-500", SIZE - 500, SIZE),
    (f"bytes=-{SIZE + 1}", 0, SIZE),
    (f"bytes=0-{SIZE - 1}", 0, SIZE),
    (f"bytes=5-{SIZE * 10}", 5, SIZE),
]


def blob(client: RegistryClient, state: str = "cold") -> tuple[str, bytes]:
    """Put a blob that no other test has, and with "warm" store it; returns its digest and content."""
    data = random_bytes(SIZE, client.repo)
    digest = client.hub.blob(client.repo, data)
    if state == "warm":
        assert client.blob(digest).body == data
        client.wait_until_stored()
        client.hub.reset_log()
    return digest, data


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_blob_has_exact_bytes_and_all_headers(client: RegistryClient, state: str, method: str) -> None:
    digest, data = blob(client, state)
    answer = client.blob(digest, method=method)
    assert (answer.status, answer.complete) == (200, True)
    assert answer.body == (data if method == "GET" else b"")
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["docker-content-digest"] == digest
    assert answer.headers["etag"] == f'"{digest}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["cache-status"].startswith("hubcache; " + ("hit" if state == "warm" else "fwd=uri-miss"))
    if state == "warm":
        assert client.hub.count() == 0


def test_head_of_a_blob_that_is_not_stored_downloads_nothing(client: RegistryClient) -> None:
    digest, _ = blob(client)
    assert client.blob(digest, method="HEAD").headers["content-length"] == str(SIZE)
    assert client.hub.count(method="HEAD", kind="blob") > 0
    assert client.hub.count(method="GET", kind="blob") == client.hub.count(method="GET", kind="cdn") == 0


@pytest.mark.parametrize("data", [b"", b"1"])
def test_tiny_blob_is_served(client: RegistryClient, data: bytes) -> None:
    digest = client.hub.blob(client.repo, data)
    for _ in range(2):
        answer = client.blob(digest)
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, data, str(len(data)))


def test_blob_of_an_upstream_that_does_not_redirect_is_served(client: RegistryClient) -> None:
    client.hub.redirects = False
    digest, data = blob(client)
    assert client.blob(digest, method="HEAD").headers["content-length"] == str(SIZE)
    assert client.blob(digest).body == data


def test_blob_of_an_upstream_that_hides_the_size_is_served(client: RegistryClient) -> None:
    """The answer to HEAD has a length, too: containerd needs it."""
    digest, data = blob(client)
    client.hub.faults.add(Fault(kind="cdn", chunked=True))
    assert client.blob(digest, method="HEAD").headers["content-length"] == str(SIZE)
    answer = client.blob(digest)
    assert (answer.headers["content-length"], answer.body == data) == (str(SIZE), True)


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize(("asked", "start", "end"), RANGES)
def test_range_is_206_with_these_bytes(client: RegistryClient, state: str, asked: str, start: int, end: int) -> None:
    digest, data = blob(client, state)
    answer = client.blob(digest, {"Range": asked})
    assert answer.status == 206
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.body == data[start:end]


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
def test_unsatisfiable_range_is_416(client: RegistryClient, state: str, asked: str) -> None:
    digest, _ = blob(client, state)
    answer = client.blob(digest, {"Range": asked})
    assert answer.failure == (416, "RANGE_INVALID")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "items=0-5", "bytes=0-1,5-6", "nonsense", "bytes=1-2-3"]
)
def test_malformed_or_multiple_range_is_ignored(client: RegistryClient, asked: str) -> None:
    """RFC 9110 section 14.2 permits it."""
    digest, data = blob(client, "warm")
    answer = client.blob(digest, {"Range": asked})
    assert (answer.status, answer.body == data) == (200, True)


def test_if_range_that_does_not_match_gets_the_whole_blob(client: RegistryClient) -> None:
    digest, data = blob(client, "warm")
    part = {"Range": "bytes=1-4"}
    assert client.blob(digest, part | {"If-Range": f'"{digest}"'}).body == data[1:5]
    for other in (f'"{ABSENT}"', f'W/"{digest}"', "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = client.blob(digest, part | {"If-Range": other})
        assert (answer.status, answer.body == data) == (200, True)


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_if_none_match_with_the_digest_is_304(client: RegistryClient, state: str, method: str) -> None:
    digest, _ = blob(client, state)
    answer = client.blob(digest, {"If-None-Match": f'"{digest}"'}, method)
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["etag"] == f'"{digest}"'


def test_interrupted_download_is_resumed_with_a_range(client: RegistryClient) -> None:
    """dockerd resumes a layer in this way."""
    digest, data = blob(client)
    exchange = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    first = exchange.read(200_000)
    exchange.close()
    assert first + client.blob(digest, {"Range": "bytes=200000-"}).body == data


def test_absent_blob_is_404(client: RegistryClient) -> None:
    client.hub.image(client.repo, "latest")
    for method in ("HEAD", "GET"):
        answer = client.blob(ABSENT, method=method)
        assert answer.status == 404
    assert answer.failure == (404, "BLOB_UNKNOWN")


# -- one blob in several repositories


def test_blob_is_downloaded_and_stored_once_for_two_repositories(client: RegistryClient, program: Program) -> None:
    digest, data = blob(client, "warm")
    other = program.client(client.listener)
    client.hub.blob(other.repo, data)
    stored = program.health["store"]
    assert other.blob(digest).body == data
    assert client.hub.count(kind="cdn", method="GET") == 0
    assert program.health["store"]["objects"] == stored["objects"]
    assert program.health["store"]["bytes"] == stored["bytes"]


def test_stored_blob_that_a_manifest_of_the_repository_names_needs_no_request_upstream(
    client: RegistryClient, program: Program
) -> None:
    digest, data = blob(client, "warm")
    other = program.client(client.listener)
    client.hub.image(other.repo, "latest", [data])
    other.manifest("latest")
    client.hub.reset_log()
    assert other.blob(digest).body == data
    assert client.hub.count() == 0


def test_stored_blob_is_not_served_from_a_repository_without_it(client: RegistryClient, program: Program) -> None:
    """Knowing a digest grants no access."""
    digest, _ = blob(client, "warm")
    other = program.client(client.listener)
    client.hub.image(other.repo, "latest")
    for method in ("GET", "HEAD"):
        assert other.blob(digest, method=method).status == 404
    assert other.blob(digest, {"Range": "bytes=0-9"}).failure == (404, "BLOB_UNKNOWN")
    assert other.blob(digest, {"If-None-Match": f'"{digest}"'}).status == 404
    assert other.blob(digest, repo="library/unknown").status == (401 if client.is_proxy else 404)
    assert client.blob(digest).status == 200


def test_large_blob_is_exact(client: RegistryClient) -> None:
    large = Synthetic(24_000_001, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    for _ in range(2):
        assert client.blob(digest).body == large.read(0, large.size)
