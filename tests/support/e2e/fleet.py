"""A fleet of real programs that share a bucket of SeaweedFS; each has its own way to the bucket and to its peers."""

import functools
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.http_client import wait_until
from support.ports import free_port
from support.program import Program, RegistryClient
from support.standin import Hub, Image

from .bucket_gateway import BucketGateway
from .client_settings import ClientSettings
from .clients import Skopeo
from .relay import Relay
from .seaweedfs import BucketView, SeaweedFS

_START_SECONDS = 120.0
"""Several test processes start several nodes each, on two cores."""


class Node:
    """A program of a fleet: it reaches the bucket through `gateway`, and other nodes reach it through `relay`."""

    def __init__(
        self, directory: Path, hub: Hub, bucket: BucketView, gateway: BucketGateway, options: Mapping[str, str]
    ) -> None:
        self.gateway = gateway
        port = free_port()
        self.relay = Relay(port)
        defaults: dict[str, str | list[str]] = {
            "hubcache_tag_ttl": "600",
            "hubcache_bucket": bucket.url,
            "hubcache_peer_listen": f"127.0.0.1:{port}",
            "hubcache_peer_address": f"127.0.0.1:{self.relay.port}",
        }
        self.program = Program(directory / "program", hub, {**defaults, **options})
        self.program.environment = {
            "AWS_ENDPOINT_URL": gateway.url,
            "AWS_ACCESS_KEY_ID": bucket.seaweedfs.access_key,
            "AWS_SECRET_ACCESS_KEY": bucket.seaweedfs.secret_key,
            "AWS_REGION": "us-east-1",
        }
        self._directory = directory
        self._copies = itertools.count(1)

    def skopeo(self, listener: str = "proxy") -> Skopeo:
        """Return a skopeo that uses this node."""
        return Skopeo(self._directory, ClientSettings(listener, self.program, self._directory))

    def pull(self, image: Image, listener: str = "proxy") -> None:
        """Pull an image with skopeo, and compare the digests of all that it received."""
        copy = self.skopeo(listener).pull(name_of(image), f"copy{next(self._copies)}")
        received = {f"sha256:{path.name}" for path in copy.iterdir() if re.fullmatch("[0-9a-f]{64}", path.name)}
        assert received == {image.config, *image.layers}
        assert (copy / "manifest.json").read_bytes() == image.manifest
        shutil.rmtree(copy)

    def client(self, listener: str = "proxy") -> RegistryClient:
        """Return an HTTP client of this node."""
        return self.program.client(listener)

    def cut_off_from_bucket(self) -> None:
        self.gateway.stop()

    def cut_off_from_peers(self) -> None:
        """Refuse connections of other nodes, which still see this node as live."""
        self.relay.stop()

    def repair(self) -> None:
        """Undo all faults of the connections."""
        self.gateway.repair()
        self.relay.start()


class RunningFleet:
    """Nodes in front of one Hub, and their bucket."""

    def __init__(
        self, directory: Path, hub: Hub, seaweedfs: SeaweedFS, stack: ExitStack, options: Mapping[str, str]
    ) -> None:
        self.directory = directory
        self.hub = hub
        self.bucket = BucketView(seaweedfs)
        self.nodes: list[Node] = []
        self._options = options
        self._stack = stack

    def prepare(self, environment: Mapping[str, str] | None = None) -> Node:
        """Return a node that has not been started, with these variables besides those of the bucket."""
        gateway = self._stack.enter_context(BucketGateway(self.bucket.seaweedfs.url))
        directory = Path(tempfile.mkdtemp(dir=self.directory, prefix="node-"))
        node = Node(directory, self.hub, self.bucket, gateway, self._options)
        node.program.environment |= environment or {}
        self._stack.enter_context(node.relay)
        self._stack.callback(node.program.stop)
        return node

    def start(self, environments: Sequence[Mapping[str, str]]) -> None:
        """Start a node for each environment, all at the same time; wait until all serve and know each other."""
        added = [self.prepare(environment) for environment in environments]
        for node in added:
            node.program.launch()
        for node in added:
            node.program.wait_until_serving(_START_SECONDS)
        self.nodes += added
        self.wait_until_complete()

    def wait_until_complete(self) -> None:
        """Wait until all nodes know each other; a node that was killed is known for 35 seconds, too."""
        wait_until(
            lambda: all(node.program.metric("hubcache_fleet_nodes") >= len(self.nodes) for node in self.nodes),
            _START_SECONDS,
            "nodes that know each other",
        )

    def wait_until_stored(self, image: Image) -> None:
        """Wait until config and layers of an image are in the bucket."""
        wait_until(lambda: all(map(self.bucket.has_blob, image.blobs)), what=f"{image.repo} in the bucket")

    def reset(self) -> None:
        """Undo all faults, wait until all nodes use the bucket again, and forget what was requested so far."""
        self.hub.faults.clear()
        self.hub.start()
        for node in self.nodes:
            node.repair()
        for node in self.nodes:
            wait_until(functools.partial(node.program.metric, "hubcache_bucket_up"), what="a request to the bucket")
            node.gateway.log.clear()
        self.hub.reset_log()

    def assert_no_errors(self) -> None:
        """Fail if a program that runs has logged a traceback, or the Hub has recorded a violation."""
        for node in self.nodes:
            node.program.assert_no_errors()


@contextmanager
def running_fleet(seaweedfs: SeaweedFS, nodes: int = 0, **options: str) -> Iterator[RunningFleet]:
    """Run a fleet of nodes with these options in front of a new, empty Hub."""
    with ExitStack() as stack:
        hub = stack.enter_context(Hub())
        directory = Path(tempfile.mkdtemp(prefix="hc-fleet-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        fleet = RunningFleet(directory, hub, seaweedfs, stack, options)
        fleet.start([{}] * nodes)
        yield fleet
        fleet.assert_no_errors()


def name_of(image: Image) -> str:
    """Return the name of an image for skopeo."""
    return f"docker.io/{image.repo}:{image.tag}"


def content_size(image: Image, hub: Hub) -> int:
    """Return the bytes of an image's config and layers."""
    blobs = hub.memory.repository(image.repo).blobs
    return sum(blobs[digest].size for digest in set(image.blobs))


def all_at_once(*work: Callable[[], object]) -> None:
    """Run all functions in threads of their own; raises the first exception when all have ended."""
    with ThreadPoolExecutor(len(work)) as threads:
        for done in [threads.submit(each) for each in work]:
            done.result()


def pull_everywhere(image: Image, nodes: Iterable[Node]) -> None:
    """Pull an image through all these nodes at the same time."""
    all_at_once(*(functools.partial(node.pull, image) for node in nodes))
