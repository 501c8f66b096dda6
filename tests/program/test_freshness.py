"""Tags are asked again when their time is over (here: at once), by HEAD, and fetched only when they moved."""

from support import program
from support.program import Door, Rig
from support.standin import Fault, Image
from support.standin.media import OCI_MANIFEST

rig, door = program.fixtures(hubcache_tag_ttl="0")


def image(door: Door, number: int, tag: str | None = "latest") -> Image:
    return door.hub.image(door.repo, tag, annotations={"of": door.repo, "number": str(number)})


def test_tag_that_did_not_move_is_revalidated_by_head_only(door: Door) -> None:
    current = image(door, 1)
    door.hub.limit(10)
    door.manifest("latest")
    door.hub.reset_log()
    for method in ("GET", "HEAD", "GET"):
        answer = door.manifest("latest", method=method)
        assert answer.headers["docker-content-digest"] == current.digest
        assert answer.headers["cache-status"].startswith("hubcache; fwd=stale")
    assert [record.method for record in door.hub.requests(kind="manifest")] == ["HEAD"] * 3
    assert door.hub.remaining == 9


def test_tag_that_moved_is_fetched_with_one_counted_get(door: Door) -> None:
    image(door, 1)
    door.hub.limit(10)
    door.manifest("latest")
    moved = image(door, 2)
    door.hub.reset_log()
    assert door.manifest("latest").body == moved.manifest
    assert [record.method for record in door.hub.requests(kind="manifest")] == ["HEAD", "GET"]
    assert door.hub.requests(kind="manifest")[1].path.endswith(moved.digest)
    assert door.hub.remaining == 8


def test_tag_that_moved_back_costs_no_pull(door: Door) -> None:
    first, second = image(door, 1, None), image(door, 2, None)
    door.hub.limit(10)
    for current in (first, second, first, second):
        door.hub.manifest(door.repo, "latest", current.manifest, OCI_MANIFEST)
        assert door.manifest("latest").body == current.manifest
    assert door.hub.remaining == 8


def test_two_tags_of_one_image_cost_one_pull(door: Door) -> None:
    current = image(door, 1)
    door.manifest("latest")
    door.hub.manifest(door.repo, "stable", current.manifest, OCI_MANIFEST)
    door.hub.limit(10)
    assert door.manifest("stable", method="HEAD").status == 200
    assert door.manifest("stable").body == current.manifest
    assert door.hub.remaining == 10


def test_tag_that_was_deleted_is_gone(door: Door) -> None:
    current = image(door, 1)
    door.manifest("latest")
    del door.hub.memory.repository(door.repo).tags["latest"]
    assert door.manifest("latest").failure == (404, "MANIFEST_UNKNOWN")
    assert door.manifest(current.digest).body == current.manifest


def test_digest_is_never_asked_again(door: Door) -> None:
    current = image(door, 1)
    door.manifest(current.digest)
    door.hub.reset_log()
    assert door.manifest(current.digest).body == current.manifest
    assert door.hub.count() == 0


def test_upstream_that_names_no_digest_in_head_is_asked_by_get(door: Door) -> None:
    current = image(door, 1)
    door.hub.faults.add(Fault(kind="manifest", drop=("Docker-Content-Digest", "ETag")))
    for method in ("GET", "HEAD", "GET"):
        answer = door.manifest("latest", method=method)
        assert answer.status == 200
        assert answer.headers["docker-content-digest"] == current.digest
        assert answer.headers["content-length"] == str(len(current.manifest))


def test_both_doors_share_what_is_stored(door: Door, rig: Rig) -> None:
    current = image(door, 1)
    door.hub.limit(10)
    assert door.manifest("latest").body == current.manifest
    other = rig.door("mirror" if door.is_proxy else "proxy")
    assert other.manifest("latest", repo=door.repo).body == current.manifest
    assert other.blob(current.layers[0], repo=door.repo).body == b"layer"
    assert door.hub.remaining == 9


def test_old_manifest_stays_available_by_digest(door: Door) -> None:
    first = image(door, 1)
    door.manifest("latest")
    image(door, 2)
    door.manifest("latest")
    door.hub.reset_log()
    assert door.manifest(first.digest).body == first.manifest
    assert door.hub.count() == 0
