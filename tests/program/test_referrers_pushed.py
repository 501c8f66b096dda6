"""A signature that is pushed through the proxy is listed at once; cached referrers of other images stay valid."""

import json

from support.program import Program, RegistryClient, program_fixtures
from support.pushes import credentials, push_client_fixture, push_manifest
from support.standin import Fault, Image
from support.standin.content import sha256


def enable_referrers(program: Program) -> None:
    """Turn on the referrers API of the Hub."""
    program.hub.referrers = True


program, _ = program_fixtures(hubcache_tag_ttl="600", hubcache_negative_ttl="600")
push_client = push_client_fixture(enable_referrers)


def referrers(client: RegistryClient, image: Image) -> list[str]:
    """Return the digests in the referrers of an image."""
    answer = client.request("GET", f"/v2/{client.repo}/referrers/{image.digest}")
    assert answer.status == 200
    return [descriptor["digest"] for descriptor in json.loads(answer.body)["manifests"]]


def pulled(client: RegistryClient, tag: str) -> Image:
    """Put an image into the Hub and pull its manifest."""
    image = client.hub.image(client.repo, tag, [tag.encode()])
    assert client.manifest(tag).status == 200
    return image


def push(client: RegistryClient, reference: str, body: bytes) -> None:
    """Push a manifest."""
    assert push_manifest(client, reference, body, credentials(client)).status == 201


def delete(client: RegistryClient, kind: str, reference: str) -> None:
    """Delete a manifest ("manifests") or a blob ("blobs")."""
    path = f"/v2/{client.repo}/{kind}/{reference}"
    assert client.request("DELETE", path, credentials(client)).status == 202


def unpushed_signature(client: RegistryClient, image: Image) -> Image:
    """Return a signature of an image that is not in the Hub yet."""
    signature = client.hub.image(client.repo, None, [b"signed"], subject=image, artifact_type="signature")
    del client.hub.memory.repository(client.repo).manifests[signature.digest]
    return signature


def test_pushed_signature_is_listed_and_other_images_are_not_requested_again(push_client: RegistryClient) -> None:
    image, other = pulled(push_client, "1"), pulled(push_client, "2")
    assert referrers(push_client, image) == referrers(push_client, other) == []
    signature = unpushed_signature(push_client, image)
    push(push_client, signature.digest, signature.manifest)
    push_client.hub.reset_log()
    assert referrers(push_client, image) == [signature.digest]
    assert referrers(push_client, other) == []
    assert push_client.hub.count(kind="referrers") == 1


def test_pushed_signature_is_listed_when_the_registry_sends_no_oci_subject(push_client: RegistryClient) -> None:
    """Without the header, the signature may belong to any image of the repository."""
    image = pulled(push_client, "1")
    assert referrers(push_client, image) == []
    signature = unpushed_signature(push_client, image)
    without_header = push_client.hub.faults.add(Fault(kind="manifest", method="PUT", drop=("OCI-Subject",)))
    push(push_client, signature.digest, signature.manifest)
    push_client.hub.faults.remove(without_header)
    assert without_header.hits == 1
    assert referrers(push_client, image) == [signature.digest]


def test_pushed_and_deleted_layer_leaves_cached_referrers_valid(push_client: RegistryClient) -> None:
    """Otherwise each pushed layer would cost a request upstream for every image of the repository."""
    image = pulled(push_client, "1")
    assert referrers(push_client, image) == []
    layer = b"a new layer"
    path = f"/v2/{push_client.repo}/blobs/uploads/?digest={sha256(layer)}"
    assert push_client.request("POST", path, credentials(push_client), layer).status == 201
    delete(push_client, "blobs", sha256(layer))
    push_client.hub.reset_log()
    assert referrers(push_client, image) == []
    assert push_client.hub.count(kind="referrers") == 0


def test_deleted_signature_is_not_listed(push_client: RegistryClient) -> None:
    image = pulled(push_client, "1")
    signature = push_client.hub.image(push_client.repo, None, [b"signed"], subject=image, artifact_type="signature")
    assert referrers(push_client, image) == [signature.digest]
    delete(push_client, "manifests", signature.digest)
    assert referrers(push_client, image) == []


def test_pushed_signature_tag_is_served_after_a_404(push_client: RegistryClient) -> None:
    """cosign pushes signatures under a tag made from the digest of the image."""
    image = pulled(push_client, "1")
    tag = image.digest.replace(":", "-") + ".sig"
    assert push_client.manifest(tag).status == 404
    signature = unpushed_signature(push_client, image)
    push(push_client, tag, signature.manifest)
    assert push_client.manifest(tag).body == signature.manifest
