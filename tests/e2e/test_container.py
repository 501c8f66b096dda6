"""The image is built, and run as the page for deployment says: it serves pulls, stops in order and keeps its store."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hubcache.operate.version import version
from support.e2e.client_settings import DEAD_PROXY
from support.e2e.clients import Docker
from support.e2e.python_base import ENVIRONMENT, python_base
from support.e2e.upstream import Upstream
from support.http_client import wait_until
from support.paths import REPOSITORY
from support.ports import free_port
from support.processes import run
from support.program import HUB_HOST
from support.recipes import recipes
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PAGE = REPOSITORY / "scripts/deploy/README.md"
BASE, IMAGE = "base:test", "hubcache"


@dataclass(frozen=True)
class MirrorSettings:
    """Settings of a dockerd that reaches Docker Hub only through a mirror at this port."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        return {"HTTPS_PROXY": DEAD_PROXY}

    @property
    def dockerd_arguments(self) -> list[str]:
        return ["--registry-mirror", f"http://127.0.0.1:{self.port}"]


def recipe(name: str, *options: str) -> list[str]:
    """Return the arguments of a docker command of the page, with options before the last argument.

    Ports are not published, because dockerd has no bridge here.
    """
    text = recipes(page=PAGE)[name].text.replace("\\\n", " ")
    program, *arguments, last = shlex.split(re.sub(r" -p \S+", "", text))
    assert program == "docker"
    return [*arguments, *options, last]


class Containers:
    """A dockerd with the image, and the containers of it."""

    def __init__(self, docker: Docker, mirror: int) -> None:
        self.docker, self.mirror = docker, mirror

    def build(self) -> None:
        """Build the image on a base with the Python of the tests."""
        changes = [part for each in ENVIRONMENT for part in ("--change", f"ENV {each}")]
        self.docker("import", *changes, str(python_base()), BASE)
        proxies = [name for name in os.environ if re.fullmatch(r"(https?|no)_proxy", name, re.IGNORECASE)]
        arguments = [f"BASE={BASE}", f"VERSION={version()}", *(f"{name}={os.environ[name]}" for name in proxies)]
        options = ["--network", "host", *(part for each in arguments for part in ("--build-arg", each))]
        environment = self.docker.env | {"DOCKER_BUILDKIT": "0"}
        run("docker", *recipe("build", *options), env=environment, timeout=500, cwd=REPOSITORY)

    def run(self, name: str, *options: str) -> None:
        """Run the image as the page says, with a volume of this name and without network, until it is healthy."""
        # The default ports may be in use at this machine.
        arguments = recipe("run", *options, "--network", "none", "--health-interval", "1s")
        arguments[arguments.index("--name") + 1] = name
        arguments[arguments.index("-v") + 1] = f"{name}:/var/lib/hubcache"
        self.docker(*arguments)
        wait_until(lambda: self.inspect(name, "{{.State.Health.Status}}") == "healthy", 60)

    def run_at_host(self, name: str, hub: Hub, status: int) -> None:
        """Run the image with the network of this machine, in front of `hub`."""
        options = {
            "HUBCACHE_REGISTRIES": f"{HUB_HOST}={hub.url()}",
            "HUBCACHE_STATUS": f"127.0.0.1:{status}",
            "HUBCACHE_TAG_TTL": "600",
        }
        variables = [part for key, value in options.items() for part in ("-e", f"{key}={value}")]
        arguments = recipe("run", *variables, "--network", "host", "--no-healthcheck")
        arguments[arguments.index("--name") + 1] = name
        ports = ("serve", "--proxy-port", str(free_port()), "--mirror-port", str(self.mirror))
        self.docker(*arguments, *ports)
        wait_until(lambda: f"hubcache: status at http://127.0.0.1:{status}" in self.logs(name), 60)

    def inspect(self, name: str, template: str) -> str:
        return self.docker("inspect", "--format", template, name).strip()

    def logs(self, name: str) -> str:
        return run("sh", "-c", f"docker logs {name} 2>&1", env=self.docker.env)

    def stop(self, name: str) -> None:
        """Stop a container and remove it; fails unless it ended in order."""
        self.docker("stop", name)
        logs = self.logs(name)
        assert self.inspect(name, "{{.State.ExitCode}}") == "0", logs
        assert "hubcache: stopping: 0 downloads were cut off" in logs
        assert "Traceback" not in logs
        self.docker("rm", name)

    def pull(self, image: str) -> str:
        """Pull an image through the mirror, and run it; returns what it prints."""
        self.docker("pull", image)
        printed = self.docker("run", "--rm", "--network", "none", image)
        self.docker("rmi", "--force", image)
        return printed.strip()


@pytest.fixture
def containers(workspace: Path) -> Iterator[Containers]:
    """A dockerd without the image."""
    mirror = free_port()
    docker = Docker(workspace, MirrorSettings(mirror))
    yield Containers(docker, mirror)
    docker.stop()


def test_image_serves_pulls_stops_in_order_and_keeps_its_store(
    containers: Containers, upstream: Upstream, hub: Hub
) -> None:
    containers.build()
    labels = json.loads(containers.inspect(IMAGE, "{{json .Config.Labels}}"))
    assert labels["org.opencontainers.image.version"] == version()
    assert containers.docker("run", "--rm", IMAGE, "--version") == f"hubcache {version()}\n"

    containers.run("default", "-e", "HUBCACHE_WORKERS=2")
    assert json.loads(containers.docker("exec", "default", "hubcache", "status", "--json"))["version"] == version()
    listening = containers.docker("exec", "default", "cat", "/proc/net/tcp", "/proc/net/tcp6")
    assert {f":{port:04X} " for port in (8080, 5000, 9180)} <= set(
        re.findall(r":[0-9A-F]{4} (?=\S+:0000 0A)", listening)
    )
    assert containers.docker("exec", "default", "id", "-u") == "10001\n"
    containers.stop("default")

    containers.run("openshift", "--user", "1000650000:0")
    containers.stop("openshift")

    containers.run_at_host("first", hub, free_port())
    hub.reset_log()
    assert containers.pull(upstream.webapp.name) == upstream.greeting
    assert hub.count(kind="blob") > 0
    certificate = containers.docker("exec", "first", "cat", "/var/lib/hubcache/ca/mitmproxy-ca-cert.pem")
    containers.stop("first")

    containers.run_at_host("second", hub, free_port())
    hub.reset_log()
    assert containers.pull(upstream.webapp.name) == upstream.greeting
    assert hub.log == []
    assert containers.docker("exec", "second", "cat", "/var/lib/hubcache/ca/mitmproxy-ca-cert.pem") == certificate
    containers.stop("second")
