"""Tags are asked again when their time is over (here: at once), by HEAD, and fetched only when they moved."""

from support.program import Program, RegistryClient, program_fixtures
from support.standin import Fault, Image
from support.standin.media import OCI_MANIFEST

program, client = program_fixtures(hubcache_tag_ttl="0")


def image(client: RegistryClient, number: int, tag: str | None = "latest") -> Image:
    return client.hub.image(client.repo, tag, annotations={"of": client.repo, "number": str(number)})


def test_tag_that_did_not_move_is_revalidated_by_head_only(client: RegistryClient) -> None:
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


def test_tag_that_moved_is_fetched_with_one_counted_get(client: RegistryClient) -> None:
    image(client, 1)
    client.hub.limit(10)
    client.manifest("latest")
    moved = image(client, 2)
    client.hub.reset_log()
    assert client.manifest("latest").body == moved.manifest
    assert [record.method for record in client.hub.requests(kind="manifest")] == ["HEAD", "GET"]
    assert client.hub.requests(kind="manifest")[1].path.endswith(moved.digest)
    assert client.hub.remaining == 8


def test_tag_that_moved_back_costs_no_pull(client: RegistryClient) -> None:
    first, second = image(client, 1, None), image(client, 2, None)
    client.hub.limit(10)
    for current in (first, second, first, second):
        client.hub.manifest(client.repo, "latest", current.manifest, OCI_MANIFEST)
        assert client.manifest("latest").body == current.manifest
    assert client.hub.remaining == 8


def test_two_tags_of_one_image_cost_one_pull(client: RegistryClient) -> None:
    current = image(client, 1)
    client.manifest("latest")
    client.hub.manifest(client.repo, "stable", current.manifest, OCI_MANIFEST)
    client.hub.limit(10)
    assert client.manifest("stable", method="HEAD").status == 200
    assert client.manifest("stable").body == current.manifest
    assert client.hub.remaining == 10


def test_tag_that_was_deleted_is_gone(client: RegistryClient) -> None:
    current = image(client, 1)
    client.manifest("latest")
    del client.hub.memory.repository(client.repo).tags["latest"]
    assert client.manifest("latest").failure == (404, "MANIFEST_UNKNOWN")
    assert client.manifest(current.digest).body == current.manifest


def test_digest_is_never_asked_again(client: RegistryClient) -> None:
    current = image(client, 1)
    client.manifest(current.digest)
    client.hub.reset_log()
    assert client.manifest(current.digest).body == current.manifest
    assert client.hub.count() == 0


def test_upstream_that_names_no_digest_in_head_is_asked_by_get(client: RegistryClient) -> None:
    current = image(client, 1)
    client.hub.faults.add(Fault(kind="manifest", drop=("Docker-Content-Digest", "ETag")))
    for method in ("GET", "HEAD", "GET"):
        answer = client.manifest("latest", method=method)
        assert answer.status == 200
        assert answer.headers["docker-content-digest"] == current.digest
        assert answer.headers["content-length"] == str(len(current.manifest))


def test_both_doors_share_what_is_stored(client: RegistryClient, program: Program) -> None:
    current = image(client, 1)
    client.hub.limit(10)
    assert client.manifest("latest").body == current.manifest
    other = program.client("mirror" if client.is_proxy else "proxy")
    assert other.manifest("latest", repo=client.repo).body == current.manifest
    assert other.blob(current.layers[0], repo=client.repo).body == b"layer"
    assert client.hub.remaining == 9


def test_old_manifest_stays_available_by_digest(client: RegistryClient) -> None:
    first = image(client, 1)
    client.manifest("latest")
    image(client, 2)
    client.manifest("latest")
    client.hub.reset_log()
    assert client.manifest(first.digest).body == first.manifest
    assert client.hub.count() == 0
