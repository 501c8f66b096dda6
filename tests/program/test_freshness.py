"""Stale tags (here: all tags at once) are validated by HEAD, and downloaded only if they moved."""

from support.program import Program, RegistryClient, program_fixtures
from support.standin import Fault, Image
from support.standin.media import OCI_MANIFEST

program, client = program_fixtures(hubcache_tag_ttl="0")


def image(client: RegistryClient, number: int) -> Image:
    """Put an image that no other test has under the tag `latest`."""
    return client.hub.image(client.repo, "latest", annotations={"of": client.repo, "number": str(number)})


def test_unmoved_tag_is_validated_by_head_alone(client: RegistryClient) -> None:
    current = image(client, 1)
    client.hub.limit(10)
    client.manifest("latest")
    client.hub.reset_log()
    for method in ("GET", "HEAD", "GET"):
        answer = client.manifest("latest", method=method)
        assert answer.headers["docker-content-digest"] == current.digest
        assert answer.headers["cache-status"].startswith("hubcache; fwd=stale")
    assert [record.method for record in client.hub.requests(kind="manifest")] == ["HEAD"] * 3
    assert client.hub.remaining == 9


def test_moved_tag_is_downloaded_with_one_counted_get(client: RegistryClient) -> None:
    image(client, 1)
    client.hub.limit(10)
    client.manifest("latest")
    moved = image(client, 2)
    client.hub.reset_log()
    assert client.manifest("latest").body == moved.manifest
    assert [record.method for record in client.hub.requests(kind="manifest")] == ["HEAD", "GET"]
    assert client.hub.requests(kind="manifest")[1].path.endswith(moved.digest)
    assert client.hub.remaining == 8


def test_two_tags_of_one_image_cost_one_pull(client: RegistryClient) -> None:
    current = image(client, 1)
    client.manifest("latest")
    client.hub.manifest(client.repo, "stable", current.manifest, OCI_MANIFEST)
    client.hub.limit(10)
    assert client.manifest("stable", method="HEAD").status == 200
    assert client.manifest("stable").body == current.manifest
    assert client.hub.remaining == 10


def test_deleted_tag_is_404_and_its_manifest_stays_available(client: RegistryClient) -> None:
    current = image(client, 1)
    client.manifest("latest")
    del client.hub.memory.repository(client.repo).tags["latest"]
    assert client.manifest("latest").failure == (404, "MANIFEST_UNKNOWN")
    assert client.manifest(current.digest).body == current.manifest


def test_stored_digest_needs_no_validation(client: RegistryClient) -> None:
    current = image(client, 1)
    client.manifest(current.digest)
    client.hub.reset_log()
    assert client.manifest(current.digest).body == current.manifest
    assert client.hub.count() == 0


def test_tag_is_validated_by_get_when_the_upstream_names_no_digest_in_head(client: RegistryClient) -> None:
    current = image(client, 1)
    client.hub.faults.add(Fault(kind="manifest", drop=("Docker-Content-Digest", "ETag")))
    for method in ("GET", "HEAD", "GET"):
        answer = client.manifest("latest", method=method)
        assert answer.status == 200
        assert answer.headers["docker-content-digest"] == current.digest
        assert answer.headers["content-length"] == str(len(current.manifest))


def test_both_listeners_share_the_store(client: RegistryClient, program: Program) -> None:
    current = image(client, 1)
    client.hub.limit(10)
    assert client.manifest("latest").body == current.manifest
    other = program.client("mirror" if client.is_proxy else "proxy")
    assert other.manifest("latest", repo=client.repo).body == current.manifest
    assert other.blob(current.layers[0], repo=client.repo).body == b"layer"
    assert client.hub.remaining == 9


def test_old_manifest_of_a_moved_tag_stays_available_by_digest(client: RegistryClient) -> None:
    first = image(client, 1)
    client.manifest("latest")
    image(client, 2)
    client.manifest("latest")
    client.hub.reset_log()
    assert client.manifest(first.digest).body == first.manifest
    assert client.hub.count() == 0
