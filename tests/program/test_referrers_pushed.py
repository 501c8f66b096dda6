"""What is pushed through the proxy is listed at once, and what was known of other images stays known."""

import base64
import hashlib
import json
from collections.abc import Iterator

import pytest
from support.program import Program, RegistryClient, program_fixtures
from support.standin import Fault, Image
from support.standin.media import OCI_MANIFEST

program, _ = program_fixtures(hubcache_tag_ttl="600", hubcache_negative_ttl="600")


@pytest.fixture
def push_client(program: Program) -> Iterator[RegistryClient]:
    """The proxy door with a repository that alice may push to."""
    program.reset()
    program.hub.user("alice", "secret")
    program.hub.referrers = True
    client = program.client("proxy")
    client.repo = client.repo.replace("library/", "alice/")
    yield client
    program.assert_no_errors()


def listed(client: RegistryClient, image: Image) -> list[str]:
    answer = client.request("GET", f"/v2/{client.repo}/referrers/{image.digest}")
    assert answer.status == 200
    return [found["digest"] for found in json.loads(answer.body)["manifests"]]


def pulled(client: RegistryClient, tag: str) -> Image:
    image = client.hub.image(client.repo, tag, [tag.encode()])
    assert client.manifest(tag).status == 200
    return image


def push(client: RegistryClient, method: str, reference: str, body: bytes = b"") -> None:
    basic = "Basic " + base64.b64encode(b"alice:secret").decode()
    token = client.token(f"repository:{client.repo}:pull,push,delete", basic)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": OCI_MANIFEST}
    path = f"/v2/{client.repo}/manifests/{reference}"
    assert client.request(method, path, headers, body=body).status in (201, 202)


def signature_of(client: RegistryClient, image: Image) -> Image:
    """Made elsewhere, and not there yet."""
    made = client.hub.image(client.repo, None, [b"signed"], subject=image, artifact_type="signature")
    del client.hub.memory.repository(client.repo).manifests[made.digest]
    return made


def test_pushed_signature_is_listed_and_other_images_are_not_asked_about(push_client: RegistryClient) -> None:
    image, other = pulled(push_client, "1"), pulled(push_client, "2")
    assert listed(push_client, image) == listed(push_client, other) == []
    signature = signature_of(push_client, image)
    push(push_client, "PUT", signature.digest, signature.manifest)
    push_client.hub.reset_log()
    assert listed(push_client, image) == [signature.digest]
    assert listed(push_client, other) == []
    assert push_client.hub.count(kind="referrers") == 1


def test_push_that_the_registry_says_nothing_about_may_be_about_any_image(push_client: RegistryClient) -> None:
    image = pulled(push_client, "1")
    assert listed(push_client, image) == []
    signature = signature_of(push_client, image)
    silent = push_client.hub.faults.add(Fault(kind="manifest", method="PUT", drop=("OCI-Subject",)))
    push(push_client, "PUT", signature.digest, signature.manifest)
    push_client.hub.faults.remove(silent)
    assert listed(push_client, image) == [signature.digest]


def test_pushed_and_deleted_layer_changes_nothing_of_what_is_listed(push_client: RegistryClient) -> None:
    """Each layer of each push would else cost a question for every image of the repository."""
    image = pulled(push_client, "1")
    assert listed(push_client, image) == []
    basic = "Basic " + base64.b64encode(b"alice:secret").decode()
    headers = {"Authorization": f"Bearer {push_client.token(f'repository:{push_client.repo}:pull,push,delete', basic)}"}
    digest = "sha256:" + hashlib.sha256(b"a new layer").hexdigest()
    path = f"/v2/{push_client.repo}/blobs/uploads/?digest={digest}"
    assert push_client.request("POST", path, headers, body=b"a new layer").status == 201
    assert push_client.request("DELETE", f"/v2/{push_client.repo}/blobs/{digest}", headers).status == 202
    push_client.hub.reset_log()
    assert listed(push_client, image) == []
    assert push_client.hub.count(kind="referrers") == 0


def test_deleted_signature_is_not_listed_any_more(push_client: RegistryClient) -> None:
    image = pulled(push_client, "1")
    signature = push_client.hub.image(push_client.repo, None, [b"signed"], subject=image, artifact_type="signature")
    assert listed(push_client, image) == [signature.digest]
    push(push_client, "DELETE", signature.digest)
    assert listed(push_client, image) == []


def test_pushed_tag_made_from_a_digest_is_found(push_client: RegistryClient) -> None:
    image = pulled(push_client, "1")
    tag = image.digest.replace(":", "-") + ".sig"
    assert push_client.manifest(tag).status == 404
    signature = signature_of(push_client, image)
    push(push_client, "PUT", tag, signature.manifest)
    assert push_client.manifest(tag).body == signature.manifest
