"""Starts a fleet: several caches that share a bucket."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from .bucket import Bucket, running_bucket
from .hubcache_server import REPOSITORY, run_hubcache
from .metrics import Metrics
from .processes import BenchError, free_port
from .server import Server, Setup

NODES = 4
BUCKET_REQUESTS = "hubcache_bucket_requests_total"
"""The metric that counts requests to the bucket."""

_PATIENCE_SECONDS = 120
_QUIET_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet(Server):
    """A fleet. Used as a server, it is its first node."""

    nodes: tuple[Server, ...]
    bucket: Bucket

    def metrics(self) -> Metrics:
        """Return the metrics of all nodes. Raises `BenchError`, as all methods do."""
        return Metrics.read(*self.nodes)

    def wait_until_joined(self) -> None:
        """Return when each node has found all others."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.metrics().total("hubcache_fleet_nodes") < len(self.nodes) ** 2:
            _check(deadline, "the nodes of the fleet have not found each other")

    def wait_until_uploaded(self) -> None:
        """Return when no upload to the bucket waits or runs."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.metrics().total("hubcache_bucket_uploads_queued"):
            _check(deadline, "uploads to the bucket continue")

    def wait_for_heartbeat(self) -> None:
        """Return when a node has sent a heartbeat, which lists the nodes, and then no other request for a second.

        The next heartbeat follows ten seconds later. The other periodic requests of a node begin at the same times.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        before = self.metrics().total(BUCKET_REQUESTS, kind="list")
        while self.metrics().total(BUCKET_REQUESTS, kind="list") == before:
            _check(deadline, "there was no heartbeat")
        count, since = self.metrics().total(BUCKET_REQUESTS), time.monotonic()
        while time.monotonic() < since + _QUIET_SECONDS:
            _check(deadline, "requests to the bucket continue")
            now = self.metrics().total(BUCKET_REQUESTS)
            if now != count:
                count, since = now, time.monotonic()


def _check(deadline: float, problem: str) -> None:
    """Wait a moment. Raises `BenchError` after the deadline."""
    if time.monotonic() > deadline:
        raise BenchError(f"{problem} after {_PATIENCE_SECONDS} seconds")
    time.sleep(0.1)


def hubcache_node(setup: Setup) -> AbstractContextManager[Server]:
    """This checkout in mitmdump, with a bucket that no other node uses."""
    return _fleet("hubcache-node", 1, setup)


def hubcache_fleet(setup: Setup) -> AbstractContextManager[Server]:
    """`NODES` times this checkout in mitmdump, with a bucket that they share."""
    return _fleet("hubcache-fleet", NODES, setup)


@contextmanager
def _fleet(name: str, count: int, setup: Setup) -> Iterator[Server]:
    with ExitStack() as stack:
        bucket = stack.enter_context(running_bucket(setup.directory / f"{name}-bucket"))
        # One after the other: the first one creates the certificate authority of all.
        names = [f"{name}-{number}" for number in range(1, count + 1)]
        nodes = tuple(stack.enter_context(_node(each, setup, bucket)) for each in names)
        first = nodes[0]
        fleet = Fleet(
            *(name, first.pid, first.origin, first.registry, first.trust, first.proxy),
            started_in=first.started_in,
            status=first.status,
            nodes=nodes,
            bucket=bucket,
        )
        fleet.wait_until_joined()
        yield fleet


def _node(name: str, setup: Setup, bucket: Bucket) -> AbstractContextManager[Server]:
    peers = f"127.0.0.1:{free_port()}"
    options = {"hubcache_bucket": bucket.url, "hubcache_peer_listen": peers, "hubcache_peer_address": peers}
    arguments = [part for option, value in options.items() for part in ("--set", f"{option}={value}")]
    return run_hubcache(name, REPOSITORY, setup, *arguments, environment=bucket.variables)
