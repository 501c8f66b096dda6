"""Faults of a fleet: no pull fails that a node alone would serve, no byte is wrong, and little is fetched twice."""

import functools
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from support.e2e.bucket_gateway import BucketFault, full
from support.e2e.fleet import Node, RunningFleet, content_size, running_fleet
from support.e2e.seaweedfs import SeaweedFS
from support.http_client import wait_until
from support.standin import Fault, Hub, Image, random_bytes
from support.standin.content import sha256

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

LAYER = 2_000_000
HALF = LAYER // 2
"""Bytes of a layer after which an upstream pauses."""


@pytest.fixture(scope="module")
def running(seaweedfs: SeaweedFS) -> Iterator[RunningFleet]:
    with running_fleet(seaweedfs, 3) as fleet:
        yield fleet


@pytest.fixture
def fleet(running: RunningFleet) -> Iterator[RunningFleet]:
    """A fleet without faults, and a Hub without a log of requests."""
    running.reset()
    running.wait_until_complete()
    yield running
    running.assert_no_errors()


@pytest.fixture
def hub(fleet: RunningFleet) -> Hub:
    return fleet.hub


def new_image(hub: Hub, name: str) -> Image:
    """Put an image with a layer that no other image has."""
    return hub.image(f"library/{name}", "1", [random_bytes(LAYER, name)])


def pause(hub: Hub, image: Image) -> Fault:
    """Pause the first download of an image's layer in the middle, until the fault is removed."""
    return hub.faults.add(Fault(kind="cdn", path=f"*{image.layers[0][7:]}*", times=1, pause_after=HALF))


def upstream_bytes(hub: Hub, image: Image) -> int:
    """Return the bytes that the Hub has sent of an image's layer."""
    return hub.sent(kind="cdn", path=f"*{image.layers[0][7:]}*")


def blob_key(digest: str) -> str:
    """Return the key of a public blob in the bucket."""
    algorithm, _, value = digest.partition(":")
    return f"blob/{algorithm}/{value[:2]}/{value}"


def received_from_peers(node: Node) -> float:
    return node.program.metric("hubcache_tier_bytes_total", tier="peer")


@contextmanager
def pulls_in_the_middle(fleet: RunningFleet, image: Image, holder: Node, *others: Node) -> Iterator[list[Future[None]]]:
    """Begin a pull through a node that downloads the image, then through others that receive it from that node.

    In the block, the pulls pause in the middle of the layer. When it ends, the download goes on; all must succeed.
    """
    fault = pause(fleet.hub, image)
    with ThreadPoolExecutor() as threads:
        try:
            pulls = [threads.submit(holder.pull, image)]
            wait_until(lambda: upstream_bytes(fleet.hub, image) == HALF, what="half of the layer")
            assert fleet.bucket.list_keys("lease/blob"), holder.gateway.recent()
            for other in others:
                before = received_from_peers(other)
                pulls.append(threads.submit(other.pull, image))
                _wait_for_half(other, before)
            yield pulls
        finally:
            fleet.hub.faults.remove(fault)
        for pull in pulls:
            pull.result(60)


def _wait_for_half(node: Node, before: float) -> None:
    try:
        wait_until(lambda: received_from_peers(node) - before >= HALF)
    except AssertionError as error:
        error.add_note(f"no half of the layer from a peer; requests to the bucket: {node.gateway.recent()}")
        raise


def assert_fetched_once(hub: Hub, image: Image) -> None:
    """Assert that at most 2 % of the content were fetched twice."""
    assert content_size(image, hub) <= hub.sent(kind="cdn") <= 1.02 * content_size(image, hub)


BUCKET_FAULTS: dict[str, Callable[[Node], object]] = {
    "refused": lambda node: node.gateway.stop(),
    "silent": lambda node: node.gateway.pause(),
    "503": lambda node: node.gateway.faults.add(BucketFault(status=503)),
    "full": lambda node: node.gateway.faults.add(full()),
    "slow": lambda node: node.gateway.faults.add(BucketFault(delay=1.0, rate=500_000)),
    "answers lost": lambda node: node.gateway.faults.add(BucketFault(loses_answer=True)),
}


@pytest.mark.parametrize("fault", BUCKET_FAULTS)
def test_bucket_fails_in_the_middle_of_pulls(fleet: RunningFleet, hub: Hub, fault: str) -> None:
    """Afterwards the fleet stores what it could not store in the meantime."""
    image = new_image(hub, f"bucket-{fault.replace(' ', '-')}")
    first, second, third = fleet.nodes
    with pulls_in_the_middle(fleet, image, first, second):
        for node in fleet.nodes:
            BUCKET_FAULTS[fault](node)
    assert_fetched_once(hub, image)
    third.pull(image)
    for node in fleet.nodes:
        node.repair()
    fleet.wait_until_stored(image)


def test_download_from_the_bucket_that_breaks_off_is_continued(fleet: RunningFleet, hub: Hub) -> None:
    """At the byte where it broke off, from where one machine alone would download it."""
    image = new_image(hub, "broken-off")
    first, second, _ = fleet.nodes
    first.pull(image)
    fleet.wait_until_stored(image)
    first.cut_off_from_peers()
    hub.reset_log()
    cut = second.gateway.faults.add(BucketFault(kind="blob", method="GET", times=3, close_after=500_000))
    second.pull(image)
    assert cut.hits > 0
    assert hub.sent(kind="cdn") <= LAYER - 500_000


def _has_asked_again(node: Node, before: int) -> bool:
    return len(node.gateway.requests(kind="blob")) > before + 1


def test_node_whose_peers_cannot_reach_it_fetches_for_them(fleet: RunningFleet, hub: Hub) -> None:
    image = new_image(hub, "no-peers")
    first, *others = fleet.nodes
    first.cut_off_from_peers()
    fault = pause(hub, image)
    with ThreadPoolExecutor() as threads:
        pulls = [threads.submit(first.pull, image)]
        wait_until(lambda: upstream_bytes(hub, image) == HALF, what="half of the layer")
        asked = [len(node.gateway.requests(kind="blob")) for node in others]
        pulls += [threads.submit(node.pull, image) for node in others]
        for node, before in zip(others, asked, strict=True):
            wait_until(functools.partial(_has_asked_again, node, before), what="repeated requests to the bucket")
        hub.faults.remove(fault)
        for pull in pulls:
            pull.result(60)
    assert_fetched_once(hub, image)


def test_node_is_cut_off_from_the_bucket_while_it_fetches(fleet: RunningFleet, hub: Hub) -> None:
    image = new_image(hub, "no-bucket")
    first, second, third = fleet.nodes
    with pulls_in_the_middle(fleet, image, first, second):
        first.cut_off_from_bucket()
    assert_fetched_once(hub, image)
    first.repair()
    fleet.wait_until_stored(image)
    third.pull(image)
    assert_fetched_once(hub, image)


def test_node_starts_while_the_bucket_is_down_and_joins_later(fleet: RunningFleet, hub: Hub) -> None:
    image = new_image(hub, "alone")
    node = fleet.prepare()
    node.cut_off_from_bucket()
    node.program.start()
    try:
        node.pull(image)
        node.repair()
        wait_until(lambda: node.program.metric("hubcache_fleet_nodes") >= 4, what="a fleet of four nodes")
        fleet.wait_until_stored(image)
        node.program.assert_no_errors()
    finally:
        node.program.stop()


def test_holder_of_a_lease_is_killed_or_stopped(fleet: RunningFleet, hub: Hub) -> None:
    """A lease ends 20 seconds after its last renewal; the tests share that time.

    A lease that a newer version wrote is waited for, too.
    """
    killed, stopped, other = fleet.nodes
    of_killed, of_stopped, of_newer = (new_image(hub, name) for name in ("killed", "stopped", "newer-lease"))
    fleet.bucket.put(f"lease/blob/{of_newer.layers[0]}", b'{"format": 2, "holders": []}')
    faults = [pause(hub, image) for image in (of_killed, of_stopped)]
    with ThreadPoolExecutor() as threads:
        lost = threads.submit(killed.pull, of_killed)
        late = threads.submit(stopped.pull, of_stopped)
        for image in (of_killed, of_stopped):
            wait_until(functools.partial(_is_paused, hub, image), what="half of the layer")
        before = received_from_peers(other)
        pulls = [threads.submit(other.pull, image) for image in (of_killed, of_stopped, of_newer)]
        wait_until(lambda: received_from_peers(other) - before >= 2 * HALF, what="half of both layers")
        killed.program.stop(signal.SIGKILL)
        os.kill(stopped.program.pid, signal.SIGSTOP)
        try:
            for pull in pulls:
                pull.result(90)
            for image in (of_killed, of_stopped):
                assert upstream_bytes(hub, image) == LAYER
            assert upstream_bytes(hub, of_newer) == LAYER
        finally:
            os.kill(stopped.program.pid, signal.SIGCONT)
            for fault in faults:
                hub.faults.remove(fault)
        late.result(60)
        assert lost.exception(60) is not None
    killed.program.start()
    fleet.wait_until_complete()
    killed.pull(of_killed)


def _is_paused(hub: Hub, image: Image) -> bool:
    return upstream_bytes(hub, image) == HALF


def test_sweeper_is_killed_between_its_deletions(seaweedfs: SeaweedFS) -> None:
    """Another node sweeps when the lease has ended. A bucket has 1,100 blobs, and a request deletes up to 1,000."""
    with running_fleet(seaweedfs, hubcache_bucket_size="400K") as fleet:
        blobs = [b"%04d" % number * 1000 for number in range(1100)]
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(fleet.bucket.put, map(blob_key, map(sha256, blobs)), blobs))
        first, second = fleet.prepare(), fleet.prepare()
        deletion = first.gateway.faults.add(BucketFault(kind="blob", method="POST", after=1, blackhole=True))
        first.program.start()
        wait_until(lambda: deletion.hits == 1, what="the second deletion of blobs")
        first.program.stop(signal.SIGKILL)
        remaining = len(fleet.bucket.list_keys("blob"))
        assert 0 < remaining <= 100
        image = new_image(fleet.hub, "after-a-sweep")
        second.program.start()
        second.pull(image)
        wait_until(lambda: fleet.bucket.list_keys("sweep"), 60, "the end of a sweep")
        assert 4000 * len(fleet.bucket.list_keys("blob")) <= 400_000
        second.program.assert_no_errors()
        second.program.stop()


def test_wrong_bytes_in_the_bucket_reach_no_client(fleet: RunningFleet, hub: Hub) -> None:
    """The answer is an error, or cut off before its last byte. Afterwards the registry sends the blob, and it is stored
    again."""
    image = new_image(hub, "wrong-bytes")
    first, second, _ = fleet.nodes
    first.pull(image)
    fleet.wait_until_stored(image)
    key = blob_key(image.layers[0])
    fleet.bucket.put(key, random_bytes(LAYER, "wrong"))
    answer = second.client().blob(image.layers[0], repo=image.repo)
    assert answer.status == 502 or not answer.complete
    assert [record.sent for record in second.gateway.requests(repo=key, method="GET")] == [LAYER]
    second.pull(image)
    wait_until(lambda: fleet.bucket.find(key) == random_bytes(LAYER, "wrong-bytes"), what="the right bytes")
