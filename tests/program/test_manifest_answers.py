"""Manifests as clients get them through both doors: bytes, headers, conditions, negotiation, artifacts of any type."""

import json

import pytest
from support import program
from support.program import ACCEPT, Door
from support.standin import random_bytes
from support.standin.content import sha256
from support.standin.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_EMPTY, OCI_INDEX, OCI_MANIFEST

rig, door = program.fixtures(hubcache_tag_ttl="600")

ABSENT = "sha256:" + "0" * 64


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("temperature", ["cold", "warm"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_manifest_has_exact_bytes_and_all_headers(door: Door, by: str, temperature: str, method: str) -> None:
    image = door.hub.image(door.repo, "latest", annotations={"of": door.repo})
    reference = "latest" if by == "tag" else image.digest
    if temperature == "warm":
        door.manifest(reference)
        door.hub.reset_log()
    answer = door.manifest(reference, method=method)
    assert (answer.status, answer.body) == (200, image.manifest if method == "GET" else b"")
    assert answer.headers["content-type"] == OCI_MANIFEST
    assert answer.headers["content-length"] == str(len(image.manifest))
    assert answer.headers["docker-content-digest"] == image.digest
    assert answer.headers["etag"] == f'"{image.digest}"'
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
    cache, _, parameters = answer.headers["cache-status"].partition("; ")
    assert cache == "hubcache"
    assert parameters.startswith("hit" if temperature == "warm" else "fwd=uri-miss")
    assert answer.headers.get("oci-namespace") == (None if door.is_proxy else "docker.io")
    if temperature == "warm":
        assert door.hub.count() == 0


def test_head_of_an_absent_tag_is_answered_by_a_head(door: Door) -> None:
    """A GET would count as a pull."""
    image = door.hub.image(door.repo, "latest", annotations={"of": door.repo})
    assert door.manifest("latest", method="HEAD").headers["docker-content-digest"] == image.digest
    assert {record.method for record in door.hub.requests(kind="manifest")} == {"HEAD"}


def test_head_and_then_get_by_digest_counts_once(door: Door) -> None:
    """As dockerd pulls."""
    image = door.hub.image(door.repo, "latest", annotations={"of": door.repo})
    door.hub.limit(10)
    assert door.manifest("latest", method="HEAD").status == 200
    assert door.manifest(image.digest).body == image.manifest
    assert door.manifest("latest").body == image.manifest
    assert door.hub.remaining == 9


@pytest.mark.parametrize("condition", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_manifest_that_the_client_has_is_304(door: Door, condition: str, method: str) -> None:
    image = door.hub.image(door.repo, "latest")
    for reference in ("latest", image.digest):
        answer = door.manifest(reference, {"If-None-Match": condition.format(image.digest)}, method)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == f'"{image.digest}"'
        assert answer.headers["docker-content-digest"] == image.digest


def test_manifest_that_the_client_has_not_is_sent(door: Door) -> None:
    image = door.hub.image(door.repo, "latest")
    assert door.manifest("latest", {"If-None-Match": f'"{ABSENT}"'}).body == image.manifest


def test_digest_with_an_encoded_colon_is_the_same_digest(door: Door) -> None:
    image = door.hub.image(door.repo, "latest")
    assert door.manifest(image.digest.replace(":", "%3A")).body == image.manifest


def test_absent_manifest_is_404_of_the_registry(door: Door) -> None:
    door.hub.image(door.repo, "latest")
    for reference in ("other", ABSENT):
        assert door.manifest(reference).failure == (404, "MANIFEST_UNKNOWN")
        assert door.manifest(reference, method="HEAD").status == 404


# -- negotiation


@pytest.mark.parametrize("order", [("index", "single"), ("single", "index")])
def test_client_without_index_support_gets_the_single_manifest_whoever_asked_before(
    door: Door, order: tuple[str, str]
) -> None:
    hub, repo = door.hub, door.repo
    images = {p: hub.image(repo, None, [p.encode()], platform=p) for p in ("linux/amd64", "linux/arm64")}
    index = hub.index(repo, "multi", images)
    wanted = {"index": (OCI_INDEX, index), "single": (OCI_MANIFEST, images["linux/amd64"])}
    for _ in range(2):
        for client in order:
            media_type, image = wanted[client]
            accept = ACCEPT if client == "index" else {"Accept": media_type}
            answer = door.request("GET", f"/v2/{repo}/manifests/multi", accept)
            assert answer.body == image.manifest
            assert answer.headers["content-type"] == media_type
            assert answer.headers["docker-content-digest"] == image.digest


def test_docker_list_and_its_manifests_keep_their_media_types(door: Door) -> None:
    hub, repo = door.hub, door.repo
    images = {p: hub.image(repo, None, [p.encode()], platform=p, docker=True) for p in ("linux/amd64", "linux/arm64")}
    index = hub.index(repo, "multi", images, docker=True)
    assert door.manifest("multi").headers["content-type"] == DOCKER_LIST
    assert door.manifest("multi").body == index.manifest
    for image in images.values():
        for _ in range(2):
            answer = door.manifest(image.digest)
            assert (answer.headers["content-type"], answer.body) == (DOCKER_MANIFEST, image.manifest)


def test_client_whose_accept_nothing_fits_gets_what_the_registry_says(door: Door) -> None:
    door.hub.image(door.repo, "latest")
    for _ in range(2):
        answer = door.request("GET", f"/v2/{door.repo}/manifests/latest", {"Accept": DOCKER_MANIFEST})
        assert answer.failure == (404, "MANIFEST_UNKNOWN")


def test_client_without_accept_gets_what_the_tag_is(door: Door) -> None:
    hub, repo = door.hub, door.repo
    index = hub.index(repo, "multi", {"linux/amd64": hub.image(repo, None)})
    assert door.request("GET", f"/v2/{repo}/manifests/multi").body == index.manifest


def test_manifest_by_digest_is_sent_whatever_the_client_accepts(door: Door) -> None:
    """Engine 29 asks by digest with a single type and `*/*`; the digest decides."""
    image = door.hub.image(door.repo, "latest")
    for accept in (DOCKER_LIST, f"{OCI_INDEX}, */*", "*/*"):
        answer = door.request("GET", f"/v2/{door.repo}/manifests/{image.digest}", {"Accept": accept})
        assert (answer.status, answer.body) == (200, image.manifest)


# -- artifacts


def test_cosign_signature_is_served_as_any_image(door: Door) -> None:
    image = door.hub.image(door.repo, "latest")
    tag = image.digest.replace(":", "-") + ".sig"
    layer_type = "application/vnd.dev.cosign.simplesigning.v1+json"
    signature = door.hub.image(door.repo, tag, [b'{"critical": 1}'], layer_type=layer_type)
    for _ in range(2):
        assert door.manifest(tag).body == signature.manifest
        assert door.blob(signature.layers[0]).body == b'{"critical": 1}'


def test_artifact_with_an_odd_config_and_subject_is_served_as_any_image(door: Door) -> None:
    image = door.hub.image(door.repo, "latest")
    artifact = door.hub.image(
        door.repo, "sbom", [b"sbom"], subject=image, artifact_type="text/spdx+json", config=b"{}", config_type=OCI_EMPTY
    )
    answer = door.manifest("sbom")
    assert (answer.status, answer.body) == (200, artifact.manifest)
    assert door.blob(sha256(b"{}")).body == b"{}"


@pytest.mark.parametrize(
    "media_type", ["application/vnd.docker.distribution.manifest.v1+prettyjws", "application/vnd.example+json"]
)
def test_manifest_of_an_unknown_type_is_served_with_its_type(door: Door, media_type: str) -> None:
    body = json.dumps({"anything": door.repo}).encode()
    digest = door.hub.manifest(door.repo, "odd", body, media_type)
    for reference in ("odd", digest, "odd"):
        answer = door.manifest(reference, {"Accept": f"{media_type}, */*"})
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["content-type"] == media_type
        assert answer.headers["docker-content-digest"] == digest


def test_tag_list_passes_through(door: Door) -> None:
    for tag in ("a", "b"):
        door.hub.image(door.repo, tag)
    answer = door.request("GET", f"/v2/{door.repo}/tags/list?n=10")
    assert json.loads(answer.body) == {"name": door.repo, "tags": ["a", "b"]}
    assert answer.headers["cache-status"].startswith("hubcache; fwd=")
    assert door.hub.requests(kind="tags")[0].path.endswith("/tags/list?n=10")


def test_manifest_as_large_as_may_be_is_served(door: Door) -> None:
    body = json.dumps({"layers": [], "fill": ""}).encode()
    body = body[:-2] + b"x" * ((4 << 20) - len(body)) + body[-2:]
    assert len(body) == 4 << 20
    digest = door.hub.manifest(door.repo, "large", body, OCI_MANIFEST)
    for _ in range(2):
        answer = door.manifest("large")
        assert (answer.status, answer.headers["docker-content-digest"], answer.body == body) == (200, digest, True)


def test_blob_asked_for_as_a_manifest_is_absent(door: Door) -> None:
    digest = door.hub.blob(door.repo, random_bytes(1000, door.repo))
    assert door.blob(digest).status == 200
    assert door.manifest(digest).failure == (404, "MANIFEST_UNKNOWN")


def test_manifest_asked_for_as_a_blob_is_absent(door: Door) -> None:
    image = door.hub.image(door.repo, "latest")
    assert door.manifest(image.digest).status == 200
    assert door.blob(image.digest).failure == (404, "BLOB_UNKNOWN")
    assert door.manifest(image.digest).status == 200
