"""The mirror as clients are configured for it: where the configuration is, and what they do when it has no image."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.e2e.client_settings import ClientSettings
from support.e2e.clients import Containerd, Docker, Skopeo
from support.e2e.upstream import Upstream
from support.http_client import wait_until
from support.program import Program
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]

type Dockers = Callable[..., Docker]
type Programs = Callable[..., Program]


def answered(program: Program, **labels: str) -> Callable[[], bool]:
    """Return a condition: requests with these labels were answered. Workers report their numbers once a second."""
    return lambda: program.metric("hubcache_requests_total", **labels) > 0


def by_flag(workspace: Path, url: str) -> list[str]:
    return ["--registry-mirror", url]


def by_daemon_json(workspace: Path, url: str) -> list[str]:
    file = workspace / "daemon.json"
    file.write_text(json.dumps({"registry-mirrors": [url]}))
    return ["--config-file", str(file)]


def by_default_file(workspace: Path, url: str) -> list[str]:
    """`/etc/default/docker`, as Debian's service and init script read it."""
    file = workspace / "default-docker"
    file.write_text(f'DOCKER_OPTS="--registry-mirror={url}"\n')
    script = f'. {file}; printf "%s\\n" $DOCKER_OPTS'
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("configured", [by_flag, by_daemon_json, by_default_file])
def test_docker_info_lists_the_mirror_and_pulls_go_there(
    dockers: Dockers,
    program: Program,
    workspace: Path,
    upstream: Upstream,
    configured: Callable[[Path, str], list[str]],
) -> None:
    settings = ClientSettings("mirror", program, workspace)
    docker = dockers(settings, *configured(workspace, settings.mirror_url))
    assert f"Registry Mirrors:\n  {settings.mirror_url}/" in docker("system", "info")
    docker("pull", upstream.debian.name)  # Docker Hub itself cannot be reached: the proxy of `settings` is dead
    wait_until(answered(program, door="mirror", kind="blob"))


def test_image_that_only_the_second_mirror_has_comes_from_there(
    dockers: Dockers, programs: Programs, workspace: Path, hub: Hub, upstream: Upstream
) -> None:
    first, second = programs("first", hubcache_mirror_miss="notfound"), programs("second")
    warm = Skopeo(workspace, ClientSettings("mirror", second, workspace))
    warm.pull(upstream.debian.full_name, "warm")
    hub.reset_log()
    docker = dockers(
        ClientSettings("mirror", second, workspace),
        *("--registry-mirror", ClientSettings("mirror", first, workspace).mirror_url),
        *("--registry-mirror", ClientSettings("mirror", second, workspace).mirror_url),
    )
    docker("pull", upstream.debian.name)
    assert docker.pulled_digest(upstream.debian.name) == upstream.debian.digest
    assert hub.count() == 0
    wait_until(answered(first, door="mirror", kind="manifest", result="error"))


def test_mirror_answers_404_until_an_image_was_requested_often_enough(
    dockers: Dockers, programs: Programs, workspace: Path, hub: Hub, upstream: Upstream
) -> None:
    """After that it has the whole image, and serves it without the Hub."""
    mirror, to_hub = programs("mirror", hubcache_mirror_miss="notfound"), programs("hub", hubcache_tag_ttl="0")
    settings = ClientSettings("mirror", mirror, workspace)
    skopeo = Skopeo(workspace, settings)
    docker = dockers(ClientSettings("proxy", to_hub, workspace), "--registry-mirror", settings.mirror_url)
    docker("pull", upstream.webapp.name)
    wait_until(answered(to_hub, door="proxy", kind="blob"), what="dockerd's pull from the Hub")
    assert not answered(mirror, kind="blob", result="hit")()

    skopeo("inspect", "--raw", f"docker://{upstream.webapp.full_name}", fails=True)  # the second of two requests
    objects = 2 + len(upstream.webapp.layers)  # with manifest and config
    wait_until(lambda: mirror.metric("hubcache_store_objects") == objects, 60, "the whole image in the mirror")
    skopeo.pull(upstream.webapp.full_name, "copy")
    docker.forget(upstream.webapp.name)
    to_hub.stop()
    hub.stop()
    docker("pull", upstream.webapp.name)
    assert docker("run", "--rm", "--network", "none", upstream.webapp.name).strip() == upstream.greeting


@dataclass(frozen=True)
class MirrorThenHub(ClientSettings):
    """A mirror, and another program whose proxy leads to the Hub."""

    to_hub: Program

    @property
    def environment(self) -> dict[str, str]:
        return ClientSettings("proxy", self.to_hub, self.workspace).environment


def test_containerd_pulls_from_the_hub_what_the_mirror_does_not_have(
    programs: Programs, workspace: Path, upstream: Upstream
) -> None:
    mirror, to_hub = programs("mirror", hubcache_mirror_miss="notfound"), programs("hub")
    containerd = Containerd(workspace, MirrorThenHub("mirror", mirror, workspace, to_hub))
    try:
        containerd.pull(upstream.multi.full_name)
        assert containerd.digest(upstream.multi.full_name) == upstream.multi.digest
    finally:
        containerd.stop()
    wait_until(answered(to_hub, door="proxy", kind="blob"))
    wait_until(answered(mirror, door="mirror", kind="manifest", result="error"))
