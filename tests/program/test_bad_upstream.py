"""An upstream that fails or lies: clients get a clear error in the spec's form, and nothing wrong is ever stored.

What time-outs do is in test_upstream.py and test_faults.py, where they are made short.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support import program
from support.http_client import wait_until
from support.program import Door, Rig
from support.standin import Fault, Image, random_bytes
from support.standin.media import OCI_MANIFEST

rig, door = program.fixtures(hubcache_tag_ttl="0", hubcache_negative_ttl="0")

HTML = "<html><body>We are down for maintenance</body></html>"
UNAVAILABLE = (503, "UNAVAILABLE")
BAD = (502, "UNAVAILABLE")


@pytest.fixture
def doors(rig: Rig) -> Iterator[list[Door]]:
    """Both doors in one test: a circuit that opened takes a second or two to close."""
    rig.refresh()
    yield [rig.door(name) for name in program.DOORS]
    rig.check()


def well_again(door: Door) -> None:
    """The fault is over, and the cache has noticed."""
    door.hub.faults.clear()
    wait_until(lambda: not door.product.health["upstreams_down"])


def described(value: object) -> str:
    """What makes a fault; else the expected status."""
    if not isinstance(value, Fault):
        return str(value[0]) if isinstance(value, tuple) else str(value)
    fields = {name: told for name, told in vars(value).items() if told != getattr(Fault(), name) and name != "release"}
    return ",".join(f"{name}={str(told)[:20]}" for name, told in fields.items())


def image(door: Door, size: int = 300_000) -> Image:
    return door.hub.image(door.repo, "latest", [random_bytes(size, door.repo)])


# -- manifests


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=404), (404, "MANIFEST_UNKNOWN")),
        (Fault(status=404, body=HTML), (404, "MANIFEST_UNKNOWN")),
        (Fault(status=400, body={"errors": [{"code": "TAG_INVALID", "message": "no"}]}), BAD),
        (Fault(status=418, body="teapot"), BAD),
        (Fault(status=204), BAD),
        (Fault(status=500), UNAVAILABLE),
        (Fault(status=503, body=HTML), UNAVAILABLE),
        (Fault(status=200, body=HTML), BAD),
        (Fault(status=200, body="", content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body="not JSON", content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body="[1, 2]", content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body='{"layers": [{"digest": "x"}]}', content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body='{"layers": 5}', content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body="[" * 100_000, content_type=OCI_MANIFEST), BAD),
        (Fault(status=200, body=b" " * ((4 << 20) + 1), content_type=OCI_MANIFEST), BAD),
        (Fault(redirect="loop"), BAD),
        (Fault(redirect="ftp://example.com/"), BAD),
        (Fault(redirect="http://[bad"), BAD),
        (Fault(reset=True), UNAVAILABLE),
        (Fault(close_after=0), UNAVAILABLE),
        (Fault(close_after=50), UNAVAILABLE),
        (Fault(corrupt_at=20), BAD),
        (Fault(length=10_000), UNAVAILABLE),
        (Fault(headers={"Docker-Content-Digest": "sha256:nonsense"}), BAD),
        (Fault(headers={"Docker-Content-Digest": "sha256:" + "0" * 64}), BAD),
        (Fault(status=200, body=b"x", headers={"Content-Encoding": "gzip"}), BAD),
    ],
    ids=described,
)
def test_manifest_that_cannot_be_had_is_an_error_and_is_not_remembered(
    doors: list[Door], fault: Fault, expected: tuple[int, str]
) -> None:
    """In the answer to a GET by tag. Then the upstream is well again, and so is the pull."""
    images = [image(door) for door in doors]
    hit = doors[0].hub.faults.add(replace(fault, kind="manifest", method="GET"))
    for door in doors:
        assert door.manifest("latest").failure == expected
    assert hit.hits >= 1
    well_again(doors[0])
    for door, current in zip(doors, images, strict=True):
        assert door.manifest("latest").body == current.manifest
        assert door.manifest(current.digest).body == current.manifest


def test_manifest_that_is_not_the_digest_asked_for_is_refused(door: Door) -> None:
    current = image(door)
    other = json.dumps({"other": door.repo}).encode()
    door.hub.manifest(door.repo, current.digest, other, OCI_MANIFEST)
    assert door.manifest(current.digest).failure == BAD


def test_manifest_longer_than_its_length_is_cut_there(door: Door) -> None:
    """The surplus is not content."""
    current = image(door)
    door.hub.faults.add(Fault(kind="manifest", extra=1000))
    assert door.manifest("latest").body == current.manifest
    well_again(door)
    assert door.manifest("latest").body == current.manifest


@pytest.mark.parametrize(("status", "expected"), [(401, (401, "UNAUTHORIZED")), (403, (403, "DENIED"))])
def test_refusal_for_ever_is_told_once_and_as_a_mirror_says_it(
    door: Door, status: int, expected: tuple[int, str]
) -> None:
    current = image(door)
    hit = door.hub.faults.add(Fault(kind="[mb]*", status=status, body=HTML if status == 403 else b""))
    for answer in (door.manifest("latest"), door.manifest(current.digest), door.blob(current.layers[0])):
        assert answer.failure == (expected if door.is_proxy else (404, "MANIFEST_UNKNOWN"))
        if expected[0] == 401 and door.is_proxy:
            assert f"repository:{door.repo}:pull" in answer.headers["www-authenticate"]
    assert hit.hits <= 9


def test_rate_limit_is_told_with_its_time_and_not_passed_on_as_a_storm(door: Door) -> None:
    """containerd tries five times at once."""
    current = image(door)
    plain = "Too Many Requests (HAP429)."
    door.hub.faults.add(Fault(kind="manifest", status=429, body=plain, headers={"Retry-After": "3"}))
    answers = [door.manifest("latest") for _ in range(5)]
    assert {answer.failure for answer in answers} == {(429, "TOOMANYREQUESTS")}
    told = [int(answer.headers["retry-after"]) for answer in answers]
    assert told == sorted(told, reverse=True)
    assert (told[0], told[-1] > 0) == (3, True)
    assert door.hub.count(kind="manifest") <= 2
    door.hub.faults.clear()
    time.sleep(3)
    assert door.manifest("latest").body == current.manifest


def test_rate_limit_costs_no_stored_image_its_pull(door: Door) -> None:
    current = image(door)
    door.manifest("latest")
    door.hub.limit(0)
    assert door.manifest("latest").body == current.manifest
    assert door.product.metric("hubcache_ratelimit_remaining", credential="anonymous") == 0


# -- blobs


@pytest.mark.parametrize("kind", ["blob", "cdn"])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=404), (404, "BLOB_UNKNOWN")),
        (Fault(status=418, body="teapot"), BAD),
        (Fault(status=500), UNAVAILABLE),
        (Fault(status=503, body=HTML), UNAVAILABLE),
        (Fault(redirect="loop"), BAD),
        (Fault(reset=True), UNAVAILABLE),
        (Fault(status=200, body=b"x", headers={"Content-Encoding": "gzip"}), BAD),
    ],
    ids=described,
)
def test_blob_that_cannot_be_had_is_an_error_and_is_not_remembered(
    doors: list[Door], kind: str, fault: Fault, expected: tuple[int, str]
) -> None:
    digests = [image(door).layers[0] for door in doors]
    doors[0].hub.faults.add(replace(fault, kind=kind))
    if kind == "cdn" and expected[0] in (404, 502) and fault.status not in (None, 200):
        expected = UNAVAILABLE  # a CDN has no say in what there is
    for door, digest in zip(doors, digests, strict=True):
        assert door.blob(digest).failure == expected
    well_again(doors[0])
    for door, digest in zip(doors, digests, strict=True):
        assert door.blob(digest).body == random_bytes(300_000, door.repo)


@pytest.mark.parametrize("name_the_size", [True, False])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(corrupt_at=0),
        Fault(corrupt_at=299_999),
        Fault(status=200, body=HTML),
        Fault(status=200, body=b""),
        Fault(status=200, body=b"x" * 300_000),
        Fault(status=200, body=b"x" * 400_000),
        Fault(chunked=True, extra=1000),
        Fault(length=200_000),
        Fault(length=400_000),
    ],
    ids=described,
)
def test_wrong_body_is_never_given_as_whole_and_never_stored(door: Door, fault: Fault, name_the_size: bool) -> None:
    """With and without a manifest that tells what size it should have."""
    digest, data = image(door).layers[0], random_bytes(300_000, door.repo)
    if name_the_size:
        door.manifest("latest")
    door.settle()
    stored = door.product.health["store"]["objects"]
    door.hub.faults.add(replace(fault, kind="cdn"))
    answer = door.blob(digest)
    if answer.status == 200:
        assert not answer.complete or answer.body == data
        assert data.startswith(answer.body[:-1]) or not answer.complete
    else:
        assert answer.failure in (BAD, UNAVAILABLE)
    door.settle()
    if not answer.complete:
        assert door.product.health["store"]["objects"] == stored
    well_again(door)
    assert door.blob(digest).body == data


def test_broken_transfer_is_resumed_where_it_broke(door: Door) -> None:
    digest, data = image(door, 1_000_000).layers[0], random_bytes(1_000_000, door.repo)
    door.hub.faults.add(Fault(kind="cdn", close_after=400_000, times=2))
    answer = door.blob(digest)
    assert (answer.complete, answer.body == data) == (True, True)
    ranges = [record.header("Range") for record in door.hub.requests(kind="cdn")]
    assert ranges[0] is None
    assert [str(one).partition("=")[0] for one in ranges[1:]] == ["bytes"] * 2


def test_transfer_resumes_also_where_the_upstream_ignores_ranges(door: Door) -> None:
    digest, data = image(door, 1_000_000).layers[0], random_bytes(1_000_000, door.repo)
    door.hub.faults.add(Fault(kind="cdn", close_after=400_000, times=1))
    door.hub.faults.add(Fault(kind="cdn", status=200, body=data, content_type="application/octet-stream"))
    answer = door.blob(digest)
    assert (answer.complete, answer.body == data) == (True, True)


def test_blob_of_another_size_than_the_manifest_says_is_refused(door: Door) -> None:
    digest = door.hub.blob(door.repo, b"12345")
    document = {"schemaVersion": 2, "layers": [{"digest": digest, "size": 6}]}
    door.hub.manifest(door.repo, "latest", json.dumps(document).encode(), OCI_MANIFEST)
    assert door.manifest("latest").status == 200
    answer = door.blob(digest)
    assert answer.failure == BAD
    assert answer.error["detail"]["expected"] == 6


# -- token service


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=500), UNAVAILABLE),
        (Fault(status=200, body=HTML), UNAVAILABLE),
        (Fault(status=200, body="{}"), UNAVAILABLE),
        (Fault(status=200, body='{"token": 5}'), UNAVAILABLE),
        (Fault(status=200, body='"token"'), UNAVAILABLE),
        (Fault(status=404, body="404 page not found"), UNAVAILABLE),
        (Fault(status=429, body="slow down", headers={"Retry-After": "1"}), (429, "TOOMANYREQUESTS")),
        (Fault(reset=True), UNAVAILABLE),
    ],
    ids=described,
)
def test_token_service_that_gives_no_token_is_a_clear_error(
    doors: list[Door], fault: Fault, expected: tuple[int, str]
) -> None:
    images = [image(door) for door in doors]
    doors[0].hub.faults.add(replace(fault, kind="token"))
    for door in doors:
        assert door.manifest("latest").failure == expected
    well_again(doors[0])
    if fault.status == 429:
        time.sleep(1)  # it said so
    for door, current in zip(doors, images, strict=True):
        assert door.manifest("latest").body == current.manifest


def test_token_that_the_registry_refuses_is_fetched_anew(door: Door) -> None:
    current = image(door)
    door.manifest("latest")
    door.hub.accounts.revoke()
    door.hub.reset_log()
    assert door.manifest("latest").body == current.manifest
    assert door.hub.count(kind="token") == 1
