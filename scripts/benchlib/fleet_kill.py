"""The workload `fleet-kill`: a node is killed while clients pull."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from .accesslog import CDN, Entry
from .fleet import BUCKET_REQUESTS, NODES, Fleet
from .images import Content
from .metrics import Metrics
from .processes import BenchError
from .retrying_client import Progress, PullFailed, RetryingClient
from .server import Server
from .workload import Contents, Figures, Workload

CLIENTS = 50
_LAYERS = (5_000_000, 3_000_000, 2_000_000, 1_000_000, 500_000, 500_000)
"""Bytes of each layer of an image: 12 MB in total, a quarter of that if `quick`. The new images are so small and the
uplink is so slow that this machine's CPU time suffices for all nodes, the clients and the bucket."""
_STORED_IMAGES = 4
_NEW_IMAGES = 2
"""New images that each client pulls."""
_GROUP = NODES
"""Clients that pull the same images: one at each node."""


def _kill(contents: Contents, server: Server, number: int) -> Figures:
    """Clients pull stored and new images, the new ones over an uplink of 100 Mbit/s, while a node is killed."""
    if not isinstance(server, Fleet) or len(server.nodes) < 2:
        raise BenchError("this workload needs a fleet of two nodes or more")
    layers = [size // (4 if contents.quick else 1) for size in _LAYERS]
    stored = [contents.image(f"bench/kill-stored-{n}", layers) for n in range(_STORED_IMAGES)]
    for n, image in enumerate(stored):
        contents.store(server.nodes[n % len(server.nodes)], image)
    new = [contents.image(f"office/kill-{number}-{n}", layers) for n in range(_NEW_IMAGES * -(-CLIENTS // _GROUP))]
    server.wait_until_uploaded()
    log_size = contents.upstream.log_size()
    errors = [_bucket_errors(node) for node in server.nodes]
    killed = pull_and_kill(server, [_images_of(client, stored, new) for client in range(CLIENTS)])
    for failure in killed.failures[:3]:
        print(f"fleet-kill: {failure}", file=sys.stderr)
    survivors = [number for number in range(len(server.nodes)) if number != killed.node]
    new_errors = sum(_bucket_errors(server.nodes[number]) - errors[number] for number in survivors)
    traffic = contents.upstream.traffic_since(log_size)
    server.restart(killed.node)
    server.wait_until_uploaded()
    paths = [path for image in new for path in image.paths if path.rpartition("/")[2] in killed.unfinished]
    files = contents.upstream.images.root
    sizes = {path: (files / path.removeprefix("/")).stat().st_size for path in paths}
    of_node = NodeTraffic.of(traffic.entries, sizes, killed.at)
    wanted = sum(image.size for image in new)
    return {
        "pulls": float(CLIENTS * 2 * _NEW_IMAGES),
        "failed pulls": float(len(killed.failures)),
        "failed attempts": float(killed.progress.failed_attempts),
        "makespan s": killed.makespan,
        "longest wait s": killed.progress.longest_wait,
        "bucket errors": new_errors,  # a node that must wait too long for the bucket fetches by itself
        "upstream x": traffic.bytes / wanted,
        "not uploaded x": of_node.not_uploaded / wanted,
        "fetched again x": of_node.fetched_again / wanted,
        "upstream without kill x": (traffic.bytes - of_node.fetched_again) / wanted,
    }


@dataclass(frozen=True, slots=True)
class Killed:
    """What happened while clients pulled and a node was killed.

    `node` is its number, `at` the time in seconds since the epoch, and `unfinished` the digests of the blobs that it
    fetched, or had fetched and not uploaded yet. `makespan` is the time in seconds until all clients were done;
    `failures` has the reason of each pull that failed.
    """

    node: int
    at: float
    unfinished: frozenset[str]
    progress: Progress
    makespan: float
    failures: Sequence[str]


def pull_and_kill(fleet: Fleet, pulls: Sequence[Sequence[Content]]) -> Killed:
    """Run a client for each list of images. Each begins at one node, and continues at the next one when that fails.

    When the clients have received half of all bytes, the node that fetches most blobs is killed. Raises `BenchError` if
    it was fetching nothing, or served no client, since the measurement would say nothing.
    """
    progress = Progress(sum(image.size for images in pulls for image in images))
    started = time.monotonic()
    with ThreadPoolExecutor(len(pulls)) as threads:
        running = [threads.submit(_pull, fleet.nodes, n, images, progress) for n, images in enumerate(pulls)]
        while not progress.half.wait(0.1):
            if all(future.done() for future in running):
                raise BenchError(f"pulls failed before a node was killed: {running[0].result()[:1]}")
        leased = fleet.bucket.leased_blobs()
        node = max(range(len(fleet.nodes)), key=lambda number: len(leased.get(fleet.peer_addresses[number], ())))
        fleet.kill(node)
        killed_at = time.time()
        unfinished = fleet.bucket.leased_blobs().get(fleet.peer_addresses[node], set())
        failures = [failure for future in running for failure in future.result()]
    if not unfinished or not progress.failed_attempts:
        raise BenchError("the killed node fetched no blob, or served no client")
    return Killed(node, killed_at, frozenset(unfinished), progress, time.monotonic() - started, failures)


@dataclass(frozen=True, slots=True)
class NodeTraffic:
    """Bytes of the blobs that the killed node fetched, or had fetched and not uploaded yet: `not_uploaded` is what the
    registry had begun to send before the kill, and `fetched_again` the part of it that was sent again."""

    not_uploaded: int
    fetched_again: int

    @classmethod
    def of(cls, entries: Iterable[Entry], sizes: Mapping[str, int], killed_at: float) -> Self:
        """Add up the responses for these blobs. `sizes` has the size of each by its URL path. Pure."""
        before, total = Counter[str](), Counter[str]()
        for entry in entries:
            if entry.uri in sizes and entry.server == CDN:
                total[entry.uri] += entry.bytes
                before[entry.uri] += entry.bytes if entry.start < killed_at else 0
        again = sum(max(0, min(before[path], total[path] - size)) for path, size in sizes.items())
        return cls(before.total(), again)


def _bucket_errors(node: Server) -> float:
    """Return how many requests of a node to the bucket have failed or took too long."""
    return Metrics.read(node).total(BUCKET_REQUESTS, outcome="error")


def _images_of(client: int, stored: Sequence[Content], new: Sequence[Content]) -> list[Content]:
    """Return the images that a client pulls, in order: a stored one before each new one."""
    group = client // _GROUP
    images = []
    for n in range(_NEW_IMAGES):
        images += [stored[(group + n) % len(stored)], new[group * _NEW_IMAGES + n]]
    return images


def _pull(nodes: Sequence[Server], number: int, images: Sequence[Content], progress: Progress) -> list[str]:
    """Pull images one after the other, and return the reasons of the pulls that failed."""
    first = number % len(nodes)
    client = RetryingClient([*nodes[first:], *nodes[:first]], progress)
    failures = []
    for image in images:
        try:
            client.pull(image)
        except PullFailed as failure:
            failures.append(str(failure))
    return failures


FLEET_KILL = Workload(
    "fleet-kill",
    f"{CLIENTS} clients pull stored and new images through {NODES} nodes, one of which is killed",
    _kill,
    ("hubcache-fleet",),
    3,
)
