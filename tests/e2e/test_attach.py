"""The attach script and the recipes of the set-up page, used by real clients."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hubcache.setup.pages import Addresses
from support.e2e.client_settings import ClientSettings
from support.e2e.clients import Containerd, Docker, Podman, Skopeo
from support.e2e.upstream import Upstream
from support.paths import REPOSITORY
from support.processes import run
from support.program import HUB_HOST, Program, running_program
from support.recipes import Recipe, recipes
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


@pytest.fixture
def root(workspace: Path) -> Path:
    """The root directory of the machine that is attached."""
    directory = workspace / "root"
    (directory / "etc/docker").mkdir(parents=True)
    (directory / "var/run").mkdir(parents=True)
    return directory


@pytest.fixture
def attach(program: Program, root: Path, workspace: Path) -> Callable[..., str]:
    """Runs the attach script that the cache serves."""

    def run_attach(docker: Docker, *arguments: str) -> str:
        script = workspace / "attach"
        script.write_text(run("curl", "-fsS", f"http://127.0.0.1:{program.mirror}/setup/attach"))
        env = docker.env | {"HUBCACHE_ATTACH_ROOT": str(root), "HUBCACHE_ATTACH_STATE": str(workspace / "state")}
        return run("sh", str(script), *arguments, env=env)

    return run_attach


def test_attached_docker_pulls_through_the_cache_and_is_detached_without_a_trace(
    dockers: Callable[..., Docker],
    attach: Callable[..., str],
    program: Program,
    root: Path,
    workspace: Path,
    upstream: Upstream,
) -> None:
    daemon_json = root / "etc/docker/daemon.json"
    original = b'{"debug":  false,\n "max-concurrent-downloads": 2}'
    daemon_json.write_bytes(original)
    (root / "var/run/docker.pid").symlink_to(workspace / "docker.pid")
    docker = dockers(ClientSettings("mirror", program, workspace), "--config-file", str(daemon_json))

    output = attach(docker, "--image", upstream.webapp.name)
    assert "the cache answered" in output
    assert json.loads(daemon_json.read_text())["max-concurrent-downloads"] == 2
    assert f"http://127.0.0.1:{program.mirror}/" in docker("info", "-f", "{{.RegistryConfig.Mirrors}}")

    attach(docker, "--detach")
    assert daemon_json.read_bytes() == original
    assert docker("info", "-f", "{{.RegistryConfig.Mirrors}}").strip() == "[]"


@pytest.fixture
def written(program: Program) -> Callable[[str], Recipe]:
    """Returns a recipe of the page with the addresses of the running cache."""
    return lambda name: recipes(Addresses("127.0.0.1", program.mirror, program.proxy))[name]


@pytest.fixture
def mirror_settings(program: Program, workspace: Path) -> ClientSettings:
    """Settings of a client that only the recipe leads to the cache: Docker Hub itself cannot be reached."""
    return ClientSettings("mirror", program, workspace)


def test_recipe_for_daemon_json(
    dockers: Callable[..., Docker],
    written: Callable[[str], Recipe],
    mirror_settings: ClientSettings,
    root: Path,
    hub: Hub,
    upstream: Upstream,
) -> None:
    file = root / "etc/docker/daemon.json"
    file.write_text(written("docker-daemon").text)
    docker = dockers(mirror_settings, "--config-file", str(file))
    docker("pull", upstream.webapp.name)
    docker.forget(upstream.webapp.name)
    hub.reset_log()
    docker("pull", upstream.webapp.name)
    assert hub.count() == 0


@pytest.mark.parametrize(("name", "directory"), [("containerd-hosts", "docker.io"), ("containerd-any", "_default")])
def test_recipe_for_containerd(
    mirror_settings: ClientSettings,
    written: Callable[[str], Recipe],
    workspace: Path,
    upstream: Upstream,
    name: str,
    directory: str,
) -> None:
    hosts = workspace / "certs.d" / directory / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(written(name).text)
    containerd = Containerd(workspace, mirror_settings)
    try:
        containerd("images", "pull", "--hosts-dir", str(hosts.parent.parent), upstream.webapp.full_name)
        assert containerd.digest(upstream.webapp.full_name) == upstream.webapp.digest
    finally:
        containerd.stop()


@dataclass(frozen=True)
class RecipeSettings(ClientSettings):
    """Settings whose registries.conf is a recipe of the page."""

    recipe: Path

    def registries_conf(self) -> Path:
        return self.recipe


@pytest.fixture
def recipe_settings(program: Program, written: Callable[[str], Recipe], workspace: Path) -> RecipeSettings:
    file = workspace / "50-hubcache.conf"
    file.write_text(written("containers").text)
    return RecipeSettings("mirror", program, workspace, file)


def test_recipe_for_skopeo(recipe_settings: RecipeSettings, workspace: Path, upstream: Upstream) -> None:
    assert (Skopeo(workspace, recipe_settings).pull(upstream.webapp.full_name, "copy") / "manifest.json").exists()


def test_recipe_for_podman(recipe_settings: RecipeSettings, workspace: Path, upstream: Upstream) -> None:
    assert Podman(workspace, recipe_settings).pull(upstream.webapp.full_name) == upstream.webapp.digest


def test_certificate_from_the_page_lets_curl_verify_the_proxy(program: Program, workspace: Path) -> None:
    ca = workspace / "ca.crt"
    run("curl", "-fsS", "-o", str(ca), f"http://127.0.0.1:{program.mirror}/ca.crt")
    url = "https://registry-1.docker.io/v2/"
    output = run(
        "curl", "-sS", "--cacert", str(ca), "-x", f"http://127.0.0.1:{program.proxy}", "-w", "%{http_code}", url
    )
    assert output.endswith("401")


def test_script_in_the_checkout_is_the_one_that_is_served(program: Program) -> None:
    served = run("curl", "-fsS", f"http://127.0.0.1:{program.mirror}/setup/attach")
    assert served.count("\n") == (REPOSITORY / "addon/hubcache/setup/attach.sh").read_text().count("\n")
    assert "usage: attach" in run(str(REPOSITORY / "scripts/attach"), "--help", env={"PATH": os.environ["PATH"]})


def test_containerd_pulls_from_any_registry_through_the_mirror(workspace: Path, hub: Hub) -> None:
    """Requests name the registry to the mirror, which has an upstream for it; containerd cannot reach the registry."""
    registry = "registry.example.org"
    with Hub() as other, running_program(hub, hubcache_registries=[HUB_HOST, f"{registry}={other.url()}"]) as program:
        image = other.image("team/app", "1", [b"of another registry"])
        hosts = workspace / "certs.d/_default/hosts.toml"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(recipes(Addresses("127.0.0.1", program.mirror, program.proxy))["containerd-any"].text)
        containerd = Containerd(workspace, ClientSettings("mirror", program, workspace))
        try:
            containerd("content", "fetch", "--hosts-dir", str(hosts.parent.parent), f"{registry}/team/app:1")
            assert containerd.digest(f"{registry}/team/app:1") == image.digest
            unknown = ("content", "fetch", "--hosts-dir", str(hosts.parent.parent), "unknown.example.org/team/app:1")
            with pytest.raises(pytest.fail.Exception, match=r"https://unknown\.example\.org/v2/team/app"):
                containerd(*unknown)  # it goes to the registry itself
        finally:
            containerd.stop()
