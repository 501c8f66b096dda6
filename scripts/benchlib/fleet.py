"""Starts a fleet: several caches that share a bucket, on this machine or each on a part of its CPU time."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from .bucket import Bucket, running_bucket
from .cpu_groups import CpuGroup, cpu_group
from .hubcache_server import REPOSITORY, run_hubcache
from .metrics import Metrics
from .processes import BenchError, free_port
from .server import Server, Setup

NODES = 4
CORES = os.cpu_count() or 1
MACHINE_CORES = min(1.0, 0.7 * CORES / NODES)
"""CPU time of a machine on which a node runs with its clients: 0.35 cores if this machine has two."""
REST_CORES = CORES - NODES * MACHINE_CORES
"""CPU time of the upstream registry and the bucket, so that they do not slow down the machines of the nodes."""
BUCKET_REQUESTS = "hubcache_bucket_requests_total"
"""The metric that counts requests to the bucket."""

_PATIENCE_SECONDS = 120
_QUIET_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet(Server):
    """A fleet. Used as a server, it is its first node."""

    nodes: list[Server]
    peer_addresses: tuple[str, ...]
    """The URL of each node for the other nodes."""
    bucket: Bucket
    start_node: Callable[[int], Server]
    """Starts the node of this number, with the store that it had."""

    def metrics(self) -> Metrics:
        """Return the metrics of all nodes. Raises `BenchError`, as all methods do."""
        return Metrics.read(*self.nodes)

    def kill(self, number: int) -> None:
        """Kill a node by SIGKILL."""
        os.killpg(self.nodes[number].pid, signal.SIGKILL)

    def restart(self, number: int) -> None:
        """Start a node that was killed, and wait until it has joined."""
        self.nodes[number] = self.start_node(number)
        self.wait_until_joined()

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


def hubcache_limited(setup: Setup) -> AbstractContextManager[Server]:
    """This checkout in mitmdump without a bucket, on a machine of `MACHINE_CORES`."""
    return _limited("hubcache-limited", setup)


def hubcache_fleet_limited(setup: Setup) -> AbstractContextManager[Server]:
    """`NODES` times this checkout in mitmdump, each on a machine of `MACHINE_CORES`."""
    return _fleet("hubcache-fleet-limited", NODES, setup, MACHINE_CORES)


@contextmanager
def _limited(name: str, setup: Setup) -> Iterator[Server]:
    with cpu_group(name, MACHINE_CORES) as machine, run_hubcache(name, REPOSITORY, setup, machine=machine) as one:
        yield one


@contextmanager
def _fleet(name: str, count: int, setup: Setup, cores: float | None = None) -> Iterator[Server]:
    """Run a fleet; each node and its clients may use `cores` of CPU time, if that is given."""
    numbers = range(count)
    peers = [f"127.0.0.1:{free_port()}" for _ in numbers]
    with ExitStack() as stack:
        names = [f"{name}-{number + 1}" for number in numbers]
        machines = [stack.enter_context(cpu_group(each, cores)) for each in names] if cores else []
        bucket = stack.enter_context(running_bucket(setup.directory / f"{name}-bucket"))
        stacks = [stack.enter_context(ExitStack()) for _ in numbers]

        def start(number: int) -> Server:
            stacks[number].close()  # removes what a killed node has left
            machine = machines[number] if machines else None
            return stacks[number].enter_context(_node(names[number], setup, bucket, peers[number], machine))

        # One after the other: the first one creates the certificate authority of all.
        nodes = [start(number) for number in numbers]
        first = nodes[0]
        fleet = Fleet(
            *(name, first.pid, first.origin, first.registry, first.trust, first.proxy),
            started_in=first.started_in,
            status=first.status,
            nodes=nodes,
            peer_addresses=tuple(f"http://{address}" for address in peers),
            bucket=bucket,
            start_node=start,
        )
        fleet.wait_until_joined()
        yield fleet


def _node(
    name: str, setup: Setup, bucket: Bucket, peers: str, machine: CpuGroup | None
) -> AbstractContextManager[Server]:
    options = {"hubcache_bucket": bucket.url, "hubcache_peer_listen": peers, "hubcache_peer_address": peers}
    arguments = [part for option, value in options.items() for part in ("--set", f"{option}={value}")]
    return run_hubcache(name, REPOSITORY, setup, *arguments, environment=bucket.variables, machine=machine)
