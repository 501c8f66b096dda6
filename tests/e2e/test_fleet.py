"""A fleet of four nodes with real clients: what one node has fetched, all have; each alone decides about access."""

import functools
import json
import shutil
from collections.abc import Iterator

import pytest
from support.e2e.bucket_gateway import BucketFault
from support.e2e.fleet import Node, RunningFleet, content_size, name_of, pull_everywhere, running_fleet
from support.e2e.seaweedfs import SeaweedFS
from support.e2e.wall_clock import moved_clock
from support.http_client import wait_until
from support.program import RegistryClient
from support.pushes import PASSWORD, credentials, push_manifest
from support.standin import Fault, Hub, Image, random_bytes
from support.users import basic

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200, func_only=True)]

SKEW = 300
"""The clock of one node is fast by this number of seconds, and that of another slow."""
USER = "alice"


@pytest.fixture(scope="module")
def running(seaweedfs: SeaweedFS) -> Iterator[RunningFleet]:
    with running_fleet(seaweedfs, hubcache_private="authorize") as fleet:
        clocks = [moved_clock(fleet.directory / f"clock{offset}", offset) for offset in (SKEW, -SKEW)]
        fleet.start([{}, {}, *clocks])
        fleet.hub.user(USER, PASSWORD)
        yield fleet


@pytest.fixture
def fleet(running: RunningFleet) -> Iterator[RunningFleet]:
    """A fleet without faults, and a Hub without a log of requests."""
    running.reset()
    yield running
    running.assert_no_errors()


@pytest.fixture
def hub(fleet: RunningFleet) -> Hub:
    return fleet.hub


def new_image(hub: Hub, repo: str, tag: str = "1") -> Image:
    """Put an image with two layers that no other image has."""
    return hub.image(repo, tag, [random_bytes(2_000_000, f"{repo} 1"), random_bytes(300_000, f"{repo} 2")])


def assert_fetched_once(hub: Hub, image: Image) -> None:
    """Assert that the Hub has sent each part of an image once; 401 is its answer to a node without a token."""
    requests = [f"{record.method} {record.kind} {record.path}" for record in hub.log if record.kind != "token"]
    assert hub.sent(kind="cdn") == content_size(image, hub), requests
    assert hub.count(kind="cdn", method="GET") == len(image.blobs), requests
    assert hub.count(kind="blob", method="GET", status=307) == len(image.blobs), requests
    assert hub.count(kind="manifest", method="GET", status=200) == 1, requests
    assert hub.count(kind="manifest", method="HEAD", status=200) <= 1, requests


def test_new_image_is_fetched_once_for_all_nodes(fleet: RunningFleet, hub: Hub) -> None:
    """Each blob takes about a second upstream, so that all nodes want it while one downloads it."""
    image = new_image(hub, "library/new")
    hub.faults.add(Fault(kind="cdn", rate=2_000_000))
    pull_everywhere(image, fleet.nodes)
    assert_fetched_once(hub, image)
    fleet.wait_until_stored(image)


def test_image_is_pulled_from_the_bucket_while_the_upstream_is_down(fleet: RunningFleet, hub: Hub) -> None:
    image = new_image(hub, "library/stored")
    first, second = fleet.nodes[:2]
    first.pull(image)
    fleet.wait_until_stored(image)
    hub.stop()
    first.cut_off_from_peers()
    second.pull(image)
    assert second.program.metric("hubcache_tier_bytes_total", tier="bucket") >= content_size(image, hub)
    assert_fetched_once(hub, image)


def test_warm_pull_needs_no_request_to_the_bucket(fleet: RunningFleet, hub: Hub) -> None:
    image = new_image(hub, "library/warm")
    node = fleet.nodes[0]
    node.pull(image)
    fleet.wait_until_stored(image)
    wait_until(lambda: not {*fleet.bucket.list_keys("lease")} - {"lease/sweep"}, what="the end of all leases")
    assert f"PUT blob/sha256/{image.config[7:9]}/{image.config[7:]}" in node.gateway.requests_of_pulls()
    node.gateway.log.clear()
    for listener in ("proxy", "mirror"):
        node.pull(image, listener)
    assert node.gateway.requests_of_pulls() == []


def has_tag(client: RegistryClient, image: Image) -> bool:
    """Whether the node serves this image at tag 1."""
    return client.manifest("1", repo=image.repo).body == image.manifest


def test_push_is_seen_by_all_nodes(fleet: RunningFleet, hub: Hub) -> None:
    """Long before the tag is stale: its lifetime is ten minutes."""
    repo = f"{USER}/pushed"
    old, new = new_image(hub, repo), new_image(hub, repo, "2")
    for node in fleet.nodes:
        assert has_tag(node.client(), old)
    pushing = fleet.nodes[0].client()
    pushing.repo = repo
    assert push_manifest(pushing, "1", new.manifest, credentials(pushing)).status == 201
    for node in fleet.nodes:
        client = node.client()
        wait_until(functools.partial(has_tag, client, new), 5, "the pushed manifest")


def test_private_image_does_not_enter_the_bucket(fleet: RunningFleet, hub: Hub) -> None:
    """Neither does its name, in the key of an answer about it."""
    secret, public = new_image(hub, f"{USER}/vault"), new_image(hub, "library/public")
    hub.private(secret.repo, {USER})
    for node in fleet.nodes[:2]:
        skopeo = node.skopeo()
        copy = fleet.directory / "copy"
        skopeo("copy", "--src-creds", f"{USER}:{PASSWORD}", f"docker://{name_of(secret)}", f"dir:{copy}")
        shutil.rmtree(copy)
        skopeo("inspect", "--raw", f"docker://{name_of(secret)}", fails=True)
        node.pull(public)
    fleet.wait_until_stored(public)
    wait_until(lambda: all(node.program.metric("hubcache_bucket_uploads_queued") == 0 for node in fleet.nodes))
    objects = {key: fleet.bucket.get(key) for key in fleet.bucket.list_keys()}
    words = [basic(USER, PASSWORD).encode(), *(token.encode() for token in hub.accounts.tokens)]
    words += [digest.partition(":")[2].encode() for digest in (secret.digest, *secret.blobs)]
    words += [random_bytes(2_000_000, f"{secret.repo} 1")[:100]]
    assert any(public.digest.encode() in value for value in objects.values())
    for key, value in objects.items():
        assert not key.startswith("private/")
        assert not [word for word in words if word in key.encode() or word in value], key
        assert secret.repo not in key


def answers(fleet: RunningFleet, image: Image) -> list[str]:
    """Return the keys of what the bucket has about an image's tag and manifest."""
    keys = [*fleet.bucket.list_keys("tag"), *fleet.bucket.list_keys("manifest")]
    return [key for key in keys if f"/{image.repo}/" in key]


def rewrite(fleet: RunningFleet, image: Image, **fields: object) -> None:
    """Change fields of what the bucket has about an image's tag and manifest, once it is there."""
    wait_until(lambda: len(answers(fleet, image)) == 2, what="tag and manifest in the bucket")
    for key in answers(fleet, image):
        fleet.bucket.put(key, json.dumps(json.loads(fleet.bucket.get(key)) | fields).encode())


def test_objects_of_a_newer_format_are_ignored(fleet: RunningFleet, hub: Hub) -> None:
    image = new_image(hub, "library/newer")
    fleet.nodes[0].pull(image)
    fleet.wait_until_stored(image)
    rewrite(fleet, image, format=2)
    fleet.bucket.put("node/newer-00000000", b'{"format": 2, "addresses": []}')
    hub.reset_log()
    fleet.nodes[1].pull(image)
    assert hub.count(kind="manifest") > 0


def test_unknown_fields_are_ignored(fleet: RunningFleet, hub: Hub) -> None:
    image = new_image(hub, "library/fields")
    fleet.nodes[0].pull(image)
    fleet.wait_until_stored(image)
    rewrite(fleet, image, newer={"a": [1]})
    hub.reset_log()
    fleet.nodes[1].pull(image)
    assert hub.count(kind="manifest") == 0


def test_times_are_comparable_although_clocks_differ_by_ten_minutes(fleet: RunningFleet, hub: Hub) -> None:
    """That is the lifetime of a tag: what one node has just validated would be stale at the other."""
    _, right, fast, slow = fleet.nodes
    for repo, first, others in (("fast", fast, [right, slow]), ("slow", slow, [right, fast])):
        image = new_image(hub, f"library/{repo}")
        first.pull(image)
        fleet.wait_until_stored(image)
        for node in others:
            node.pull(image)
        assert_fetched_once(hub, image)
        hub.reset_log()


def test_store_that_does_not_keep_conditions_is_refused_at_start(fleet: RunningFleet) -> None:
    node: Node = fleet.prepare()
    node.gateway.faults.add(BucketFault(denies_conflicts=True))
    node.program.launch()
    assert node.program.wait_for_exit() != 0
    (line,) = [line for line in node.program.log.splitlines() if " hubcache: " in line]
    assert "hubcache_bucket: the bucket cannot be shared by a fleet" in line
