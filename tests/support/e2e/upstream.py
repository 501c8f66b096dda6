"""The upstream of the end-to-end tests: Debian's docker-registry with real images, behind the stand-in Hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.ports import free_port
from support.processes import Daemon, accepts_connections
from support.required import require
from support.standin import Hub, random_bytes

from .base_layer import base_layer
from .images import PublishedImage, Publisher, compressed_layer, layer

USER, PASSWORD = "alice", "correct horse"


@dataclass(frozen=True)
class Upstream:
    """A running Hub and its images."""

    hub: Hub
    publisher: Publisher
    debian: PublishedImage
    """A Debian base, Docker schema 2, one layer."""
    webapp: PublishedImage
    """An OCI image of four layers on that base. A container of it prints `greeting`."""
    multi: PublishedImage
    """An OCI image index of amd64 and arm64, whose images are small and cannot run."""
    greeting: str


def start_registry(workspace: Path) -> tuple[Daemon, int]:
    """Start a docker-registry without access control; returns it and its port."""
    require("docker-registry")
    port = free_port()
    settings = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(workspace / "registry")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "relativeurls": True},
    }
    (workspace / "registry.yml").write_text(json.dumps(settings))  # JSON is YAML
    daemon = Daemon(["docker-registry", "serve", workspace / "registry.yml"], workspace / "registry.log")
    daemon.start(lambda: accepts_connections(port))
    return daemon, port


@contextmanager
def running_upstream(workspace: Path) -> Iterator[Upstream]:
    """Start the registry and the Hub, and publish the images."""
    base = compressed_layer(base_layer())
    daemon, port = start_registry(workspace)
    try:
        address = f"http://127.0.0.1:{port}"
        publisher, greeting = Publisher(address), "hello from three layers"
        application = [
            base,
            layer({"opt/app/run*": b'#!/bin/sh\nread -r version < /opt/app/version\necho "$GREETING $version"\n'}),
            layer({"opt/app/data": random_bytes(5_000_000, "data"), "opt/app/version": b"zero\n"}),
            layer({"opt/app/version": b"three layers\n", "etc/.wh.debian_version": b""}),
        ]
        start = {"Cmd": ["/opt/app/run"], "Env": ["PATH=/usr/bin:/bin", "GREETING=hello from"]}
        few = [layer({"opt/app/few": random_bytes(1_000_000, "few")}), application[1]]
        multi = {
            arch: publisher.image("library/multi", f"1.0-{arch}", few, arch=arch, config=start)
            for arch in ("amd64", "arm64")
        }
        with Hub(backend_url=address) as hub:
            hub.user(USER, PASSWORD)
            yield Upstream(
                hub,
                publisher,
                publisher.image("library/debian", "base", [base], docker=True, config={"Cmd": ["/bin/sh"]}),
                publisher.image("library/webapp", "1.0", application, config=start),
                publisher.index("library/multi", "1.0", multi),
                greeting,
            )
    finally:
        daemon.stop()
