"""Manifests as clients get them through both doors: bytes, headers, conditions, negotiation, artifacts of any type."""

import json

import pytest
from support.program import ACCEPT, RegistryClient, program_fixtures
from support.standin import random_bytes
from support.standin.content import sha256
from support.standin.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_EMPTY, OCI_INDEX, OCI_MANIFEST

program, client = program_fixtures(hubcache_tag_ttl="600")

ABSENT = "sha256:" + "0" * 64


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("temperature", ["cold", "warm"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_manifest_has_exact_bytes_and_all_headers(
    client: RegistryClient, by: str, temperature: str, method: str
) -> None:
    image = client.hub.image(client.repo, "latest", annotations={"of": client.repo})
    reference = "latest" if by == "tag" else image.digest
    if temperature == "warm":
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
    assert parameters.startswith("hit" if temperature == "warm" else "fwd=uri-miss")
    assert answer.headers.get("oci-namespace") == (None if client.is_proxy else "docker.io")
    if temperature == "warm":
        assert client.hub.count() == 0


def test_head_of_an_absent_tag_is_answered_by_a_head(client: RegistryClient) -> None:
    """A GET would count as a pull."""
    image = client.hub.image(client.repo, "latest", annotations={"of": client.repo})
    assert client.manifest("latest", method="HEAD").headers["docker-content-digest"] == image.digest
    assert {record.method for record in client.hub.requests(kind="manifest")} == {"HEAD"}


def test_head_and_then_get_by_digest_counts_once(client: RegistryClient) -> None:
    """As dockerd pulls."""
    image = client.hub.image(client.repo, "latest", annotations={"of": client.repo})
    client.hub.limit(10)
    assert client.manifest("latest", method="HEAD").status == 200
    assert client.manifest(image.digest).body == image.manifest
    assert client.manifest("latest").body == image.manifest
    assert client.hub.remaining == 9


@pytest.mark.parametrize("condition", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_manifest_that_the_client_has_is_304(client: RegistryClient, condition: str, method: str) -> None:
    image = client.hub.image(client.repo, "latest")
    for reference in ("latest", image.digest):
        answer = client.manifest(reference, {"If-None-Match": condition.format(image.digest)}, method)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == f'"{image.digest}"'
        assert answer.headers["docker-content-digest"] == image.digest


def test_manifest_that_the_client_has_not_is_sent(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    assert client.manifest("latest", {"If-None-Match": f'"{ABSENT}"'}).body == image.manifest


def test_digest_with_an_encoded_colon_is_the_same_digest(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    assert client.manifest(image.digest.replace(":", "%3A")).body == image.manifest


def test_absent_manifest_is_404_of_the_registry(client: RegistryClient) -> None:
    client.hub.image(client.repo, "latest")
    for reference in ("other", ABSENT):
        assert client.manifest(reference).failure == (404, "MANIFEST_UNKNOWN")
        assert client.manifest(reference, method="HEAD").status == 404


# -- negotiation


@pytest.mark.parametrize("order", [("index", "single"), ("single", "index")])
def test_client_without_index_support_gets_the_single_manifest_whoever_asked_before(
    client: RegistryClient, order: tuple[str, str]
) -> None:
    hub, repo = client.hub, client.repo
    images = {p: hub.image(repo, None, [p.encode()], platform=p) for p in ("linux/amd64", "linux/arm64")}
    index = hub.index(repo, "multi", images)
    wanted = {"index": (OCI_INDEX, index), "single": (OCI_MANIFEST, images["linux/amd64"])}
    for _ in range(2):
        for asker in order:
            media_type, image = wanted[asker]
            accept = ACCEPT if asker == "index" else {"Accept": media_type}
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


def test_client_whose_accept_nothing_fits_gets_what_the_registry_says(client: RegistryClient) -> None:
    client.hub.image(client.repo, "latest")
    for _ in range(2):
        answer = client.request("GET", f"/v2/{client.repo}/manifests/latest", {"Accept": DOCKER_MANIFEST})
        assert answer.failure == (404, "MANIFEST_UNKNOWN")


def test_client_without_accept_gets_what_the_tag_is(client: RegistryClient) -> None:
    hub, repo = client.hub, client.repo
    index = hub.index(repo, "multi", {"linux/amd64": hub.image(repo, None)})
    assert client.request("GET", f"/v2/{repo}/manifests/multi").body == index.manifest


def test_manifest_by_digest_is_sent_whatever_the_client_accepts(client: RegistryClient) -> None:
    """Engine 29 asks by digest with a single type and `*/*`; the digest decides."""
    image = client.hub.image(client.repo, "latest")
    for accept in (DOCKER_LIST, f"{OCI_INDEX}, */*", "*/*"):
        answer = client.request("GET", f"/v2/{client.repo}/manifests/{image.digest}", {"Accept": accept})
        assert (answer.status, answer.body) == (200, image.manifest)


# -- artifacts


def test_cosign_signature_is_served_as_any_image(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    tag = image.digest.replace(":", "-") + ".sig"
    layer_type = "application/vnd.dev.cosign.simplesigning.v1+json"
    signature = client.hub.image(client.repo, tag, [b'{"critical": 1}'], layer_type=layer_type)
    for _ in range(2):
        assert client.manifest(tag).body == signature.manifest
        assert client.blob(signature.layers[0]).body == b'{"critical": 1}'


def test_artifact_with_an_odd_config_and_subject_is_served_as_any_image(client: RegistryClient) -> None:
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
def test_manifest_of_an_unknown_type_is_served_with_its_type(client: RegistryClient, media_type: str) -> None:
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


def test_manifest_as_large_as_may_be_is_served(client: RegistryClient) -> None:
    body = json.dumps({"layers": [], "fill": ""}).encode()
    body = body[:-2] + b"x" * ((4 << 20) - len(body)) + body[-2:]
    assert len(body) == 4 << 20
    digest = client.hub.manifest(client.repo, "large", body, OCI_MANIFEST)
    for _ in range(2):
        answer = client.manifest("large")
        assert (answer.status, answer.headers["docker-content-digest"], answer.body == body) == (200, digest, True)


def test_blob_asked_for_as_a_manifest_is_absent(client: RegistryClient) -> None:
    digest = client.hub.blob(client.repo, random_bytes(1000, client.repo))
    assert client.blob(digest).status == 200
    assert client.manifest(digest).failure == (404, "MANIFEST_UNKNOWN")


def test_manifest_asked_for_as_a_blob_is_absent(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    assert client.manifest(image.digest).status == 200
    assert client.blob(image.digest).failure == (404, "BLOB_UNKNOWN")
    assert client.manifest(image.digest).status == 200
