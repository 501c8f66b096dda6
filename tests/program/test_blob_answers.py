"""Blobs as clients get them through both doors: bytes, headers, ranges, conditions; and which repository has them."""

import pytest
from support import program
from support.program import Door, Rig
from support.standin import Fault, Synthetic, random_bytes

rig, door = program.fixtures(hubcache_tag_ttl="600")

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


def blob(door: Door, temperature: str = "cold") -> tuple[str, bytes]:
    """A blob that no other test has, in the store already when `warm`."""
    data = random_bytes(SIZE, door.repo)
    digest = door.hub.blob(door.repo, data)
    if temperature == "warm":
        assert door.blob(digest).body == data
        door.settle()
        door.hub.reset_log()
    return digest, data


@pytest.mark.parametrize("temperature", ["cold", "warm"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_blob_has_exact_bytes_and_all_headers(door: Door, temperature: str, method: str) -> None:
    digest, data = blob(door, temperature)
    answer = door.blob(digest, method=method)
    assert (answer.status, answer.complete) == (200, True)
    assert answer.body == (data if method == "GET" else b"")
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["docker-content-digest"] == digest
    assert answer.headers["etag"] == f'"{digest}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["cache-status"].startswith(
        "hubcache; " + ("hit" if temperature == "warm" else "fwd=uri-miss")
    )
    if temperature == "warm":
        assert door.hub.count() == 0


def test_head_of_an_absent_blob_fetches_nothing(door: Door) -> None:
    digest, _ = blob(door)
    assert door.blob(digest, method="HEAD").headers["content-length"] == str(SIZE)
    assert door.hub.count(method="GET", kind="cdn") == 0


@pytest.mark.parametrize("data", [b"", b"1"])
def test_tiny_blobs_are_served(door: Door, data: bytes) -> None:
    digest = door.hub.blob(door.repo, data)
    for _ in range(2):
        answer = door.blob(digest)
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, data, str(len(data)))


def test_blob_of_an_upstream_that_does_not_redirect_is_served(door: Door) -> None:
    door.hub.redirects = False
    digest, data = blob(door)
    assert door.blob(digest, method="HEAD").headers["content-length"] == str(SIZE)
    assert door.blob(digest).body == data


def test_blob_of_an_upstream_that_hides_the_size_is_served(door: Door) -> None:
    """Also its HEAD has a length: containerd needs it."""
    digest, data = blob(door)
    door.hub.faults.add(Fault(kind="cdn", chunked=True))
    assert door.blob(digest, method="HEAD").headers["content-length"] == str(SIZE)
    answer = door.blob(digest)
    assert (answer.headers["content-length"], answer.body == data) == (str(SIZE), True)


@pytest.mark.parametrize("temperature", ["cold", "warm"])
@pytest.mark.parametrize(("asked", "start", "end"), RANGES)
def test_range_is_answered_with_that_part(door: Door, temperature: str, asked: str, start: int, end: int) -> None:
    digest, data = blob(door, temperature)
    answer = door.blob(digest, {"Range": asked})
    assert answer.status == 206
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.body == data[start:end]


@pytest.mark.parametrize("temperature", ["cold", "warm"])
@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
def test_range_without_a_byte_is_416(door: Door, temperature: str, asked: str) -> None:
    digest, _ = blob(door, temperature)
    answer = door.blob(digest, {"Range": asked})
    assert answer.failure == (416, "RANGE_INVALID")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "items=0-5", "bytes=0-1,5-6", "nonsense", "bytes=1-2-3"]
)
def test_range_that_is_malformed_or_multiple_is_ignored(door: Door, asked: str) -> None:
    """RFC 9110 section 14.2."""
    digest, data = blob(door, "warm")
    answer = door.blob(digest, {"Range": asked})
    assert (answer.status, answer.body == data) == (200, True)


def test_range_holds_only_while_if_range_names_the_blob(door: Door) -> None:
    digest, data = blob(door, "warm")
    part = {"Range": "bytes=1-4"}
    assert door.blob(digest, part | {"If-Range": f'"{digest}"'}).body == data[1:5]
    for other in (f'"{ABSENT}"', f'W/"{digest}"', "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = door.blob(digest, part | {"If-Range": other})
        assert (answer.status, answer.body == data) == (200, True)


@pytest.mark.parametrize("temperature", ["cold", "warm"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_blob_that_the_client_has_is_304(door: Door, temperature: str, method: str) -> None:
    digest, _ = blob(door, temperature)
    answer = door.blob(digest, {"If-None-Match": f'"{digest}"'}, method)
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["etag"] == f'"{digest}"'


def test_resumed_pull_adds_up_to_the_blob(door: Door) -> None:
    """As dockerd resumes a layer that broke off."""
    digest, data = blob(door)
    exchange = door.send("GET", f"/v2/{door.repo}/blobs/{digest}")
    first = exchange.read(200_000)
    exchange.close()
    assert first + door.blob(digest, {"Range": "bytes=200000-"}).body == data


def test_absent_blob_is_404_of_the_registry(door: Door) -> None:
    door.hub.image(door.repo, "latest")
    for method in ("HEAD", "GET"):
        answer = door.blob(ABSENT, method=method)
        assert answer.status == 404
    assert answer.failure == (404, "BLOB_UNKNOWN")


# -- one blob, several repositories


def test_blob_is_fetched_and_stored_once_for_two_repositories(door: Door, rig: Rig) -> None:
    digest, data = blob(door, "warm")
    other = rig.door(door.name)
    door.hub.blob(other.repo, data)
    stored = rig.product.health["store"]
    assert other.blob(digest).body == data
    assert door.hub.count(kind="cdn", method="GET") == 0
    assert rig.product.health["store"]["objects"] == stored["objects"]
    assert rig.product.health["store"]["bytes"] == stored["bytes"]


def test_blob_that_a_manifest_of_the_repository_names_needs_no_question(door: Door, rig: Rig) -> None:
    digest, data = blob(door, "warm")
    other = rig.door(door.name)
    door.hub.image(other.repo, "latest", [data])
    other.manifest("latest")
    door.hub.reset_log()
    assert other.blob(digest).body == data
    assert door.hub.count() == 0


def test_stored_blob_is_not_given_through_a_repository_that_lacks_it(door: Door, rig: Rig) -> None:
    """Knowing a digest is no right."""
    digest, _ = blob(door, "warm")
    other = rig.door(door.name)
    door.hub.image(other.repo, "latest")
    for method in ("GET", "HEAD"):
        assert other.blob(digest, method=method).status == 404
    assert other.blob(digest, {"Range": "bytes=0-9"}).failure == (404, "BLOB_UNKNOWN")
    assert other.blob(digest, {"If-None-Match": f'"{digest}"'}).status == 404
    assert other.blob(digest, repo="library/never-heard-of").status in (401, 404)
    assert door.blob(digest).status == 200


def test_large_blob_made_of_many_chunks_is_exact(door: Door) -> None:
    large = Synthetic(24_000_001, seed=door.repo)
    digest = door.hub.blob(door.repo, large)
    for _ in range(2):
        assert door.blob(digest).body == large.read(0, large.size)
