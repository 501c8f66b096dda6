"""Pushes through the proxy reach the upstream with the client's own credentials, and update what is cached."""

import pytest
from support.http_client import Exchange, head, wait_until
from support.program import HUB_HOST, LISTENERS, Program, RegistryClient, program_fixtures
from support.pushes import EMPTY, credentials, manifest, push_blob, push_client_fixture, push_manifest
from support.standin import Fault, random_bytes

program, client = program_fixtures(hubcache_tag_ttl="600", hubcache_negative_ttl="600")
push_client = push_client_fixture()


def test_blob_upload_reaches_the_upstream(push_client: RegistryClient) -> None:
    data = random_bytes(3_000_000, push_client.repo)
    headers = credentials(push_client)
    digest = push_blob(push_client, data, headers)
    assert push_client.hub.memory.repository(push_client.repo).blobs[digest].size == len(data)
    uploads = push_client.hub.requests(kind="upload")
    assert [record.method for record in uploads] == ["POST", "PATCH", "PUT"]
    assert {record.user for record in uploads} == {"alice"}
    assert {record.authorization for record in uploads} == set(headers.values())


def test_upload_location_leads_back_through_the_proxy(push_client: RegistryClient) -> None:
    """The upstream sends an absolute URL with its own address."""
    location = f"{push_client.hub.url()}/v2/{push_client.repo}/blobs/uploads/1?_state=a%2Fb"
    push_client.hub.faults.add(Fault(kind="upload", status=202, headers={"Location": location}))
    answer = push_client.request("POST", f"/v2/{push_client.repo}/blobs/uploads/", credentials(push_client) | EMPTY)
    assert answer.headers["location"] == f"/v2/{push_client.repo}/blobs/uploads/1?_state=a%2Fb"


def test_upload_location_at_another_host_is_unchanged(push_client: RegistryClient) -> None:
    location = "https://storage.example.com/upload?signature=a%2Fb"
    push_client.hub.faults.add(Fault(kind="upload", status=202, headers={"Location": location}))
    answer = push_client.request("POST", f"/v2/{push_client.repo}/blobs/uploads/", credentials(push_client) | EMPTY)
    assert answer.headers["location"] == location


def test_pushed_tag_is_served_to_the_next_pull(push_client: RegistryClient, program: Program) -> None:
    headers = credentials(push_client)
    bodies = [manifest(push_blob(push_client, layer, headers)) for layer in (b"first", b"other")]
    for body in bodies:
        answer = push_manifest(push_client, "latest", body, headers)
        assert answer.status == 201
        for name in LISTENERS:
            reader = program.client(name)
            assert reader.manifest("latest", repo=push_client.repo).body == body
            assert reader.manifest("latest", repo=push_client.repo).headers["cache-status"].startswith("hubcache; hit")


@pytest.mark.parametrize("repository_exists", [True, False])
def test_pushed_tag_is_served_after_a_404(
    push_client: RegistryClient, program: Program, repository_exists: bool
) -> None:
    """Before the push the repository does not exist, and the proxy answers 401, as Docker Hub does."""
    headers = credentials(push_client)
    if repository_exists:
        assert push_manifest(push_client, "other", manifest(), headers).status == 201
    for name in LISTENERS:
        expected = 401 if name == "proxy" and not repository_exists else 404
        assert program.client(name).manifest("latest", repo=push_client.repo).status == expected
    assert push_manifest(push_client, "latest", manifest(), headers).status == 201
    for name in LISTENERS:
        assert program.client(name).manifest("latest", repo=push_client.repo).body == manifest()


def test_refused_push_changes_no_cached_tag(push_client: RegistryClient, program: Program) -> None:
    body = manifest(push_blob(push_client, b"layer", credentials(push_client)))
    push_manifest(push_client, "latest", body, credentials(push_client))
    reader = program.client("mirror")
    assert reader.manifest("latest", repo=push_client.repo).body == body
    assert push_manifest(push_client, "latest", manifest(), credentials(push_client, "pull")).status == 401
    program.hub.reset_log()
    assert reader.manifest("latest", repo=push_client.repo).body == body
    assert program.hub.count() == 0


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_deleted_manifest_is_404_at_once(push_client: RegistryClient, program: Program, by: str) -> None:
    headers = credentials(push_client)
    body = manifest(push_blob(push_client, b"layer", headers))
    digest = push_manifest(push_client, "latest", body, headers).headers["docker-content-digest"]
    reader = program.client("proxy")
    assert reader.manifest("latest", repo=push_client.repo).body == body
    deleted = "latest" if by == "tag" else digest
    assert push_client.request("DELETE", f"/v2/{push_client.repo}/manifests/{deleted}", headers).status == 202
    assert reader.manifest(deleted, repo=push_client.repo).status == 404


def test_mount_from_another_repository_passes_through(push_client: RegistryClient) -> None:
    digest = push_client.hub.blob("library/source", b"mounted layer")
    path = f"/v2/{push_client.repo}/blobs/uploads/?mount={digest}&from=library/source"
    assert push_client.request("POST", path, credentials(push_client) | EMPTY).status == 201
    assert digest in push_client.hub.memory.repository(push_client.repo).blobs


def test_push_without_credentials_is_refused_by_the_upstream(client: RegistryClient) -> None:
    """The cache does not add its own tokens: they permit only pulls."""
    answer = client.request("POST", f"/v2/{client.repo}/blobs/uploads/", EMPTY)
    assert answer.status == 401
    (record,) = client.hub.requests(kind="upload")
    assert record.authorization is None


def test_push_with_the_local_token_is_refused_by_the_upstream(push_client: RegistryClient) -> None:
    token = push_client.token(f"repository:{push_client.repo}:pull,push")
    answer = push_client.request("POST", f"/v2/{push_client.repo}/blobs/uploads/", {"Authorization": f"Bearer {token}"})
    assert answer.status == 401
    (record,) = push_client.hub.requests(kind="upload")
    assert record.authorization is None


def test_large_upload_is_streamed(push_client: RegistryClient) -> None:
    """The upstream receives the first half before the second is sent."""
    headers = credentials(push_client)
    begun = push_client.request("POST", f"/v2/{push_client.repo}/blobs/uploads/", headers | EMPTY)
    half = random_bytes(1_000_000)
    fields = {"Host": HUB_HOST, "Connection": "close", "Content-Length": str(2 * len(half)), **headers}
    with push_client.connect() as connection:
        connection.sendall(head("PATCH", begun.headers["location"], fields) + half)
        wait_until(lambda: push_client.hub.count(kind="upload", method="PATCH") == 1)
        connection.sendall(half)
        answer = Exchange(connection, "PATCH").finish()
    assert answer.status == 202
    assert answer.headers["range"] == f"0-{2 * len(half) - 1}"
