"""Answers with manifests at both listeners: bytes, headers, conditions, negotiation, artifacts of any type."""

import json

import pytest
from support.program import ACCEPT, RegistryClient, program_fixtures
from support.standin import random_bytes
from support.standin.content import sha256
from support.standin.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_EMPTY, OCI_INDEX, OCI_MANIFEST

program, client = program_fixtures(hubcache_tag_ttl="600")

ABSENT = "sha256:" + "0" * 64


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_manifest_has_exact_bytes_and_all_headers(client: RegistryClient, by: str, state: str, method: str) -> None:
    image = client.hub.image(client.repo, "latest", annotations={"of": client.repo})
    reference = "latest" if by == "tag" else image.digest
    if state == "warm":
        client.manifest(reference)
        client.hub.reset_log()
    answer = client.manifest(reference, method=method)
    assert (answer.status, answer.body) == (200, image.manifest if method == "GET" else b"")
    assert answer.headers["content-type"] == OCI_MANIFEST
    assert answer.headers["content-length"] == str(len(image.manifest))
    assert answer.headers["docker-content-digest"] == image.digest
    assert answer.headers["etag"] == f'"{image.digest}"'
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
    cache, _, parameters = answer.headers["cache-status"].partition("; ")
    assert cache == "hubcache"
    assert parameters.startswith("hit" if state == "warm" else "fwd=uri-miss")
    assert answer.headers.get("oci-namespace") == (None if client.is_proxy else "docker.io")
    if state == "warm":
        assert client.hub.count() == 0


def test_head_of_a_tag_that_is_not_stored_is_a_head_upstream(client: RegistryClient) -> None:
    """Docker Hub counts a GET as a pull."""
    image = client.hub.image(client.repo, "latest", annotations={"of": client.repo})
    assert client.manifest("latest", method="HEAD").headers["docker-content-digest"] == image.digest
    assert {record.method for record in client.hub.requests(kind="manifest")} == {"HEAD"}


def test_head_of_a_tag_and_get_of_its_digest_count_as_one_pull(client: RegistryClient) -> None:
    """dockerd pulls in this way."""
    image = client.hub.image(client.repo, "latest", annotations={"of": client.repo})
    client.hub.limit(10)
    assert client.manifest("latest", method="HEAD").status == 200
    assert client.manifest(image.digest).body == image.manifest
    assert client.manifest("latest").body == image.manifest
    assert client.hub.remaining == 9


@pytest.mark.parametrize("condition", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_if_none_match_with_the_digest_is_304(client: RegistryClient, condition: str, method: str) -> None:
    image = client.hub.image(client.repo, "latest")
    for reference in ("latest", image.digest):
        answer = client.manifest(reference, {"If-None-Match": condition.format(image.digest)}, method)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == f'"{image.digest}"'
        assert answer.headers["docker-content-digest"] == image.digest


def test_if_none_match_with_another_digest_is_200(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    assert client.manifest("latest", {"If-None-Match": f'"{ABSENT}"'}).body == image.manifest


def test_digest_with_an_encoded_colon_is_served(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    assert client.manifest(image.digest.replace(":", "%3A")).body == image.manifest


def test_absent_manifest_is_404(client: RegistryClient) -> None:
    client.hub.image(client.repo, "latest")
    for reference in ("other", ABSENT):
        assert client.manifest(reference).failure == (404, "MANIFEST_UNKNOWN")
        assert client.manifest(reference, method="HEAD").status == 404


# -- negotiation


@pytest.mark.parametrize("order", [("index", "single"), ("single", "index")])
def test_each_client_gets_the_media_type_that_it_accepts(client: RegistryClient, order: tuple[str, str]) -> None:
    """Docker Hub answers a client that accepts no index with the manifest for linux/amd64."""
    hub, repo = client.hub, client.repo
    images = {p: hub.image(repo, None, [p.encode()], platform=p) for p in ("linux/amd64", "linux/arm64")}
    index = hub.index(repo, "multi", images)
    wanted = {"index": (OCI_INDEX, index), "single": (OCI_MANIFEST, images["linux/amd64"])}
    for _ in range(2):
        for kind in order:
            media_type, image = wanted[kind]
            accept = ACCEPT if kind == "index" else {"Accept": media_type}
            answer = client.request("GET", f"/v2/{repo}/manifests/multi", accept)
            assert answer.body == image.manifest
            assert answer.headers["content-type"] == media_type
            assert answer.headers["docker-content-digest"] == image.digest


def test_docker_list_and_its_manifests_keep_their_media_types(client: RegistryClient) -> None:
    hub, repo = client.hub, client.repo
    images = {p: hub.image(repo, None, [p.encode()], platform=p, docker=True) for p in ("linux/amd64", "linux/arm64")}
    index = hub.index(repo, "multi", images, docker=True)
    assert client.manifest("multi").headers["content-type"] == DOCKER_LIST
    assert client.manifest("multi").body == index.manifest
    for image in images.values():
        for _ in range(2):
            answer = client.manifest(image.digest)
            assert (answer.headers["content-type"], answer.body) == (DOCKER_MANIFEST, image.manifest)


def test_client_that_accepts_another_media_type_alone_gets_the_404_of_the_registry(client: RegistryClient) -> None:
    client.hub.image(client.repo, "latest")
    for _ in range(2):
        answer = client.request("GET", f"/v2/{client.repo}/manifests/latest", {"Accept": DOCKER_MANIFEST})
        assert answer.failure == (404, "MANIFEST_UNKNOWN")


def test_client_without_accept_gets_the_index_of_the_tag(client: RegistryClient) -> None:
    hub, repo = client.hub, client.repo
    index = hub.index(repo, "multi", {"linux/amd64": hub.image(repo, None)})
    assert client.request("GET", f"/v2/{repo}/manifests/multi").body == index.manifest


def test_manifest_is_served_by_digest_with_any_accept(client: RegistryClient) -> None:
    """The digest selects the manifest. Engine 29 sends a single media type and `*/*`."""
    image = client.hub.image(client.repo, "latest")
    for accept in (DOCKER_LIST, f"{OCI_INDEX}, */*", "*/*"):
        answer = client.request("GET", f"/v2/{client.repo}/manifests/{image.digest}", {"Accept": accept})
        assert (answer.status, answer.body) == (200, image.manifest)


# -- artifacts


def test_cosign_signature_is_served(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    tag = image.digest.replace(":", "-") + ".sig"
    layer_type = "application/vnd.dev.cosign.simplesigning.v1+json"
    signature = client.hub.image(client.repo, tag, [b'{"critical": 1}'], layer_type=layer_type)
    for _ in range(2):
        assert client.manifest(tag).body == signature.manifest
        assert client.blob(signature.layers[0]).body == b'{"critical": 1}'


def test_artifact_with_an_empty_config_and_a_subject_is_served(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    artifact = client.hub.image(
        client.repo,
        "sbom",
        [b"sbom"],
        subject=image,
        artifact_type="text/spdx+json",
        config=b"{}",
        config_type=OCI_EMPTY,
    )
    answer = client.manifest("sbom")
    assert (answer.status, answer.body) == (200, artifact.manifest)
    assert client.blob(sha256(b"{}")).body == b"{}"


@pytest.mark.parametrize(
    "media_type", ["application/vnd.docker.distribution.manifest.v1+prettyjws", "application/vnd.example+json"]
)
def test_manifest_of_an_unknown_media_type_is_served_with_it(client: RegistryClient, media_type: str) -> None:
    body = json.dumps({"anything": client.repo}).encode()
    digest = client.hub.manifest(client.repo, "odd", body, media_type)
    for reference in ("odd", digest, "odd"):
        answer = client.manifest(reference, {"Accept": f"{media_type}, */*"})
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["content-type"] == media_type
        assert answer.headers["docker-content-digest"] == digest


def test_tag_list_passes_through(client: RegistryClient) -> None:
    for tag in ("a", "b"):
        client.hub.image(client.repo, tag)
    answer = client.request("GET", f"/v2/{client.repo}/tags/list?n=10")
    assert json.loads(answer.body) == {"name": client.repo, "tags": ["a", "b"]}
    assert answer.headers["cache-status"].startswith("hubcache; fwd=")
    assert client.hub.requests(kind="tags")[0].path.endswith("/tags/list?n=10")


def test_manifest_of_the_largest_permitted_size_is_served(client: RegistryClient) -> None:
    body = json.dumps({"layers": [], "fill": ""}).encode()
    body = body[:-2] + b"x" * ((4 << 20) - len(body)) + body[-2:]
    assert len(body) == 4 << 20
    digest = client.hub.manifest(client.repo, "large", body, OCI_MANIFEST)
    for _ in range(2):
        answer = client.manifest("large")
        assert (answer.status, answer.headers["docker-content-digest"], answer.body == body) == (200, digest, True)


def test_digest_of_a_blob_is_no_manifest(client: RegistryClient) -> None:
    digest = client.hub.blob(client.repo, random_bytes(1000, client.repo))
    assert client.blob(digest).status == 200
    assert client.manifest(digest).failure == (404, "MANIFEST_UNKNOWN")


def test_digest_of_a_manifest_is_no_blob(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    assert client.manifest(image.digest).status == 200
    assert client.blob(image.digest).failure == (404, "BLOB_UNKNOWN")
    assert client.manifest(image.digest).status == 200
