"""Pushes through the proxy: they reach the upstream with the client's own credentials, and move what is remembered."""

from collections.abc import Iterator

import pytest
from support import program
from support.http_client import Exchange, head, wait_until
from support.program import Door, Rig
from support.pushes import credentials, manifest, push_blob, push_manifest
from support.standin import Fault, random_bytes

rig, door = program.fixtures(hubcache_tag_ttl="600", hubcache_negative_ttl="600")


@pytest.fixture
def pusher(rig: Rig) -> Iterator[Door]:
    """The proxy door with a repository that alice may push to."""
    rig.refresh()
    rig.hub.user("alice", "secret")
    door = rig.door("proxy")
    door.repo = door.repo.replace("library/", "alice/")
    yield door
    rig.check()


def test_blob_upload_reaches_the_upstream(pusher: Door) -> None:
    data = random_bytes(3_000_000, pusher.repo)
    headers = credentials(pusher)
    digest = push_blob(pusher, data, headers)
    assert pusher.hub.memory.repository(pusher.repo).blobs[digest].size == len(data)
    uploads = pusher.hub.requests(kind="upload")
    assert [record.method for record in uploads] == ["POST", "PATCH", "PUT"]
    assert {record.user for record in uploads} == {"alice"}
    assert {record.authorization for record in uploads} == set(headers.values())


def test_upload_location_leads_back_through_the_proxy(pusher: Door) -> None:
    """Also where the upstream names an absolute address of its own."""
    location = f"{pusher.hub.url()}/v2/{pusher.repo}/blobs/uploads/1?_state=a%2Fb"
    pusher.hub.faults.add(Fault(kind="upload", status=202, headers={"Location": location}))
    answer = pusher.request("POST", f"/v2/{pusher.repo}/blobs/uploads/", credentials(pusher) | {"Content-Length": "0"})
    assert answer.headers["location"] == f"/v2/{pusher.repo}/blobs/uploads/1?_state=a%2Fb"


def test_location_elsewhere_stays_as_it_is(pusher: Door) -> None:
    location = "https://storage.example.com/upload?signature=a%2Fb"
    pusher.hub.faults.add(Fault(kind="upload", status=202, headers={"Location": location}))
    answer = pusher.request("POST", f"/v2/{pusher.repo}/blobs/uploads/", credentials(pusher) | {"Content-Length": "0"})
    assert answer.headers["location"] == location


def test_pushed_tag_is_what_a_pull_gets_next(pusher: Door, rig: Rig) -> None:
    headers = credentials(pusher)
    bodies = [manifest(push_blob(pusher, layer, headers)) for layer in (b"first", b"other")]
    for body in bodies:
        answer = push_manifest(pusher, "latest", body, headers)
        assert answer.status == 201
        for name in program.DOORS:
            reader = rig.door(name)
            assert reader.manifest("latest", repo=pusher.repo).body == body
            assert reader.manifest("latest", repo=pusher.repo).headers["cache-status"].startswith("hubcache; hit")


def test_pushed_tag_ends_the_memory_that_it_was_absent(pusher: Door, rig: Rig) -> None:
    headers = credentials(pusher)
    layer = push_blob(pusher, b"layer", headers)
    assert push_manifest(pusher, "other", manifest(layer), headers).status == 201
    for name in program.DOORS:
        assert rig.door(name).manifest("latest", repo=pusher.repo).status == 404
    assert push_manifest(pusher, "latest", manifest(layer), headers).status == 201
    for name in program.DOORS:
        assert rig.door(name).manifest("latest", repo=pusher.repo).body == manifest(layer)


def test_push_that_was_refused_moves_nothing(pusher: Door, rig: Rig) -> None:
    body = manifest(push_blob(pusher, b"layer", credentials(pusher)))
    push_manifest(pusher, "latest", body, credentials(pusher))
    reader = rig.door("mirror")
    assert reader.manifest("latest", repo=pusher.repo).body == body
    assert push_manifest(pusher, "latest", manifest(), credentials(pusher, "pull")).status == 401
    rig.hub.reset_log()
    assert reader.manifest("latest", repo=pusher.repo).body == body
    assert rig.hub.count() == 0


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_deleted_tag_is_gone_at_once(pusher: Door, rig: Rig, by: str) -> None:
    headers = credentials(pusher)
    body = manifest(push_blob(pusher, b"layer", headers))
    digest = push_manifest(pusher, "latest", body, headers).headers["docker-content-digest"]
    reader = rig.door("proxy")
    assert reader.manifest("latest", repo=pusher.repo).body == body
    path = f"/v2/{pusher.repo}/manifests/{'latest' if by == 'tag' else digest}"
    assert pusher.request("DELETE", path, headers).status == 202
    if by == "tag":
        assert reader.manifest("latest", repo=pusher.repo).status == 404
    else:
        assert reader.manifest(digest, repo=pusher.repo).status == 404


def test_mount_from_another_repository_passes_through(pusher: Door) -> None:
    digest = pusher.hub.blob("library/source", b"mounted layer")
    path = f"/v2/{pusher.repo}/blobs/uploads/?mount={digest}&from=library/source"
    assert pusher.request("POST", path, credentials(pusher) | {"Content-Length": "0"}).status == 201
    assert digest in pusher.hub.memory.repository(pusher.repo).blobs


def test_push_without_credentials_is_refused_by_the_upstream(door: Door) -> None:
    """And gets no token of ours: that one is for reading."""
    answer = door.request("POST", f"/v2/{door.repo}/blobs/uploads/", {"Content-Length": "0"})
    assert answer.status == 401
    (record,) = door.hub.requests(kind="upload")
    assert record.authorization is None


def test_push_with_the_local_token_is_refused_by_the_upstream(pusher: Door) -> None:
    token = pusher.token(f"repository:{pusher.repo}:pull,push")
    answer = pusher.request("POST", f"/v2/{pusher.repo}/blobs/uploads/", {"Authorization": f"Bearer {token}"})
    assert answer.status == 401
    (record,) = pusher.hub.requests(kind="upload")
    assert record.authorization is None


def test_large_upload_is_streamed(pusher: Door) -> None:
    """The upstream has its beginning while its end is not sent yet."""
    headers = credentials(pusher)
    begun = pusher.request("POST", f"/v2/{pusher.repo}/blobs/uploads/", headers | {"Content-Length": "0"})
    half = random_bytes(1_000_000)
    fields = {"Host": program.HUB_HOST, "Connection": "close", "Content-Length": str(2 * len(half)), **headers}
    with pusher.connect() as connection:
        connection.sendall(head("PATCH", begun.headers["location"], fields) + half)
        wait_until(lambda: pusher.hub.count(kind="upload", method="PATCH") == 1)
        connection.sendall(half)
        answer = Exchange(connection, "PATCH").finish()
    assert answer.status == 202
    assert answer.headers["range"] == f"0-{2 * len(half) - 1}"
