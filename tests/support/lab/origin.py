"""The upstream side: Debian's docker-registry with real images, behind the stand-in Hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.ports import free_port
from support.processes import Daemon, accepts, require
from support.standin import Hub, random_bytes

from .base import base_layer
from .images import Published, Publisher, layer, layer_of

USER, PASSWORD = "alice", "correct horse"


@dataclass(frozen=True)
class Origin:
    """A running Hub with content."""

    hub: Hub
    publisher: Publisher
    debian: Published
    """A Debian base, Docker schema 2, one layer."""
    webapp: Published
    """An OCI image of four layers on that base; run, it prints :attr:`greeting`."""
    multi: Published
    """An OCI index of amd64 and arm64."""
    greeting: str


def start_registry(room: Path) -> tuple[Daemon, int]:
    """A docker-registry where everybody may do everything, and its port."""
    require("docker-registry")
    port = free_port()
    settings = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(room / "registry")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "relativeurls": True},
    }
    (room / "registry.yml").write_text(json.dumps(settings))  # JSON is YAML
    daemon = Daemon(["docker-registry", "serve", room / "registry.yml"], room / "registry.log")
    daemon.start(lambda: accepts(port))
    return daemon, port


@contextmanager
def running_origin(room: Path) -> Iterator[Origin]:
    """Start the registry and the Hub, and publish the images."""
    base = layer_of(base_layer())
    daemon, port = start_registry(room)
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
        multi = {
            arch: publisher.image("library/multi", f"1.0-{arch}", application[:2], arch=arch, config=start)
            for arch in ("amd64", "arm64")
        }
        with Hub(backend_url=address) as hub:
            hub.user(USER, PASSWORD)
            yield Origin(
                hub,
                publisher,
                publisher.image("library/debian", "base", [base], docker=True, config={"Cmd": ["/bin/sh"]}),
                publisher.image("library/webapp", "1.0", application, config=start),
                publisher.index("library/multi", "1.0", multi),
                greeting,
            )
    finally:
        daemon.stop()
