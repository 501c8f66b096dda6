"""What is pushed through the proxy is listed at once, and what was known of other images stays known."""

import base64
import hashlib
import json
from collections.abc import Iterator

import pytest
from support import program
from support.program import Door, Rig
from support.standin import Fault, Image
from support.standin.media import OCI_MANIFEST

rig, _ = program.fixtures(hubcache_tag_ttl="600", hubcache_negative_ttl="600")


@pytest.fixture
def pusher(rig: Rig) -> Iterator[Door]:
    """The proxy door with a repository that alice may push to."""
    rig.refresh()
    rig.hub.user("alice", "secret")
    rig.hub.referrers = True
    door = rig.door("proxy")
    door.repo = door.repo.replace("library/", "alice/")
    yield door
    rig.check()


def listed(door: Door, image: Image) -> list[str]:
    answer = door.request("GET", f"/v2/{door.repo}/referrers/{image.digest}")
    assert answer.status == 200
    return [found["digest"] for found in json.loads(answer.body)["manifests"]]


def pulled(door: Door, tag: str) -> Image:
    image = door.hub.image(door.repo, tag, [tag.encode()])
    assert door.manifest(tag).status == 200
    return image


def push(door: Door, method: str, reference: str, body: bytes = b"") -> None:
    basic = "Basic " + base64.b64encode(b"alice:secret").decode()
    token = door.token(f"repository:{door.repo}:pull,push,delete", basic)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": OCI_MANIFEST}
    path = f"/v2/{door.repo}/manifests/{reference}"
    assert door.request(method, path, headers, body=body).status in (201, 202)


def signature_of(door: Door, image: Image) -> Image:
    """Made elsewhere, and not there yet."""
    made = door.hub.image(door.repo, None, [b"signed"], subject=image, artifact_type="signature")
    del door.hub.memory.repository(door.repo).manifests[made.digest]
    return made


def test_pushed_signature_is_listed_and_other_images_are_not_asked_about(pusher: Door) -> None:
    image, other = pulled(pusher, "1"), pulled(pusher, "2")
    assert listed(pusher, image) == listed(pusher, other) == []
    signature = signature_of(pusher, image)
    push(pusher, "PUT", signature.digest, signature.manifest)
    pusher.hub.reset_log()
    assert listed(pusher, image) == [signature.digest]
    assert listed(pusher, other) == []
    assert pusher.hub.count(kind="referrers") == 1


def test_push_that_the_registry_says_nothing_about_may_be_about_any_image(pusher: Door) -> None:
    image = pulled(pusher, "1")
    assert listed(pusher, image) == []
    signature = signature_of(pusher, image)
    silent = pusher.hub.faults.add(Fault(kind="manifest", method="PUT", drop=("OCI-Subject",)))
    push(pusher, "PUT", signature.digest, signature.manifest)
    pusher.hub.faults.remove(silent)
    assert listed(pusher, image) == [signature.digest]


def test_pushed_and_deleted_layer_changes_nothing_of_what_is_listed(pusher: Door) -> None:
    """Each layer of each push would else cost a question for every image of the repository."""
    image = pulled(pusher, "1")
    assert listed(pusher, image) == []
    basic = "Basic " + base64.b64encode(b"alice:secret").decode()
    headers = {"Authorization": f"Bearer {pusher.token(f'repository:{pusher.repo}:pull,push,delete', basic)}"}
    digest = "sha256:" + hashlib.sha256(b"a new layer").hexdigest()
    path = f"/v2/{pusher.repo}/blobs/uploads/?digest={digest}"
    assert pusher.request("POST", path, headers, body=b"a new layer").status == 201
    assert pusher.request("DELETE", f"/v2/{pusher.repo}/blobs/{digest}", headers).status == 202
    pusher.hub.reset_log()
    assert listed(pusher, image) == []
    assert pusher.hub.count(kind="referrers") == 0


def test_deleted_signature_is_not_listed_any_more(pusher: Door) -> None:
    image = pulled(pusher, "1")
    signature = pusher.hub.image(pusher.repo, None, [b"signed"], subject=image, artifact_type="signature")
    assert listed(pusher, image) == [signature.digest]
    push(pusher, "DELETE", signature.digest)
    assert listed(pusher, image) == []


def test_pushed_tag_made_from_a_digest_is_found(pusher: Door) -> None:
    image = pulled(pusher, "1")
    tag = image.digest.replace(":", "-") + ".sig"
    assert pusher.manifest(tag).status == 404
    signature = signature_of(pusher, image)
    push(pusher, "PUT", tag, signature.manifest)
    assert pusher.manifest(tag).body == signature.manifest
