"""The set-up page: its recipes are valid in their formats and carry this cache's addresses."""

import json
import re
import tomllib
from typing import Any

import pytest
from hubcache.setup import pages
from hubcache.setup.pages import SOURCE, Addresses, attach_script, setup_page
from ruamel.yaml import YAML  # a dependency of mitmproxy
from support.recipes import Recipe, recipes

CACHE = Addresses("cache.lan", 5001, 3128)


RECIPES = list(recipes(CACHE).values())


def test_every_block_of_the_page_is_a_recipe() -> None:
    assert len(RECIPES) == SOURCE.read_text().count("\n```") // 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_is_valid_in_its_format(recipe: Recipe) -> None:
    assert "CACHE" not in recipe.text
    if recipe.language == "toml":
        assert tomllib.loads(recipe.text)
    elif recipe.language == "json":
        assert json.loads(recipe.text)
    elif recipe.language == "yaml":
        assert YAML(typ="safe").load(recipe.text)
    else:
        assert recipe.language in ("sh", "ini")


@pytest.mark.parametrize(
    "recipe", [each for each in RECIPES if each.name != "proxy-systemd"], ids=lambda each: each.name
)
def test_recipe_names_the_mirror_of_this_cache(recipe: Recipe) -> None:
    if recipe.name not in ("containerd-1", "containerd-2", "kind"):  # these name a directory
        assert "cache.lan:5001" in recipe.text


def test_page_is_html_with_this_caches_addresses() -> None:
    page = setup_page(CACHE).decode()
    assert page.startswith("<!doctype html>")
    assert "http://cache.lan:3128" in page
    assert "CACHE:" not in page
    assert "CACHE_MAX_SIZE" in page
    assert "Replace" not in page
    assert "repository -->" not in page
    assert re.search(r"(?:src|href)=\"?https?:", page) is None, "nothing is loaded from elsewhere"


def test_rendering_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """mitmproxy wakes the event loop for each line of the log, at any level."""
    caplog.set_level("DEBUG")
    pages._page_without_addresses.cache_clear()
    setup_page(CACHE)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("cache.lan:5000", "cache.lan"),
        ("10.1.2.3", "10.1.2.3"),
        ("[fd00::1]:5000", "[fd00::1]"),
        ("", "CACHE"),
        ("evil'; rm -rf /", "CACHE"),
        ("$(id)", "CACHE"),
        ("a b", "CACHE"),
        ("x" * 300, "CACHE"),
        ("<script>", "CACHE"),
    ],
)
def test_malformed_host_never_reaches_page_or_script(authority: str, host: str) -> None:
    addresses = Addresses.of(authority, 5000, 8080)
    assert addresses.host == host
    assert f"mirror='{host}:5000'" in attach_script(addresses).decode()


def parsed(name: str) -> Any:
    """Return the parsed text of a recipe."""
    language, _, text = next(recipe for recipe in RECIPES if recipe.name == name)
    if language == "toml":
        return tomllib.loads(text)
    return json.loads(text) if language == "json" else YAML(typ="safe").load(text)


@pytest.mark.parametrize("name", ["docker-hosts", "containerd-hosts"])
def test_hosts_toml_has_the_keys_that_containerd_reads(name: str) -> None:
    """containerd, docs/hosts.md: an unknown capability makes it reject the whole file."""
    document = parsed(name)
    assert document["server"] == "https://registry-1.docker.io"
    (host,) = document["host"].items()
    assert host[0] == "http://cache.lan:5001"
    assert set(host[1]) == {"capabilities"}
    assert set(host[1]["capabilities"]) <= {"pull", "resolve", "referrers"}


def test_daemon_json_has_the_key_that_dockerd_reads() -> None:
    assert parsed("docker-daemon") == {"registry-mirrors": ["http://cache.lan:5001"]}


@pytest.mark.parametrize(
    ("name", "plugin"),
    [("containerd-1", "io.containerd.grpc.v1.cri"), ("containerd-2", "io.containerd.cri.v1.images")],
)
def test_containerd_config_names_the_directory_of_its_image_plugin(name: str, plugin: str) -> None:
    assert parsed(name) == {"plugins": {plugin: {"registry": {"config_path": "/etc/containerd/certs.d"}}}}


def test_k3s_registries_yaml_has_the_keys_of_its_documentation() -> None:
    assert parsed("k3s") == {"mirrors": {"docker.io": {"endpoint": ["http://cache.lan:5001"]}}}


def test_kind_cluster_mounts_the_directory_that_its_containerd_reads() -> None:
    document = parsed("kind")
    assert (document["kind"], document["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    (patch,) = document["containerdConfigPatches"]
    directory = tomllib.loads(patch)["plugins"]["io.containerd.grpc.v1.cri"]["registry"]["config_path"]
    (node,) = document["nodes"]
    assert node["role"] == "control-plane"
    assert [mount["containerPath"] for mount in node["extraMounts"]] == [directory]


def test_registries_conf_has_one_mirror_of_docker_hub() -> None:
    """containers-registries.conf(5)."""
    (registry,) = parsed("containers")["registry"]
    assert registry == {"location": "docker.io", "mirror": [{"location": "cache.lan:5001", "insecure": True}]}


@pytest.mark.parametrize("name", ["buildkit", "github"])
def test_buildkitd_toml_names_the_mirror_and_speaks_http_to_it(name: str) -> None:
    document = parsed(name)
    if name == "github":
        (step,) = document
        assert step["uses"].startswith("docker/setup-buildx-action@v")
        document = tomllib.loads(step["with"]["buildkitd-config-inline"])
    assert document == {"registry": {"docker.io": {"mirrors": ["cache.lan:5001"]}, "cache.lan:5001": {"http": True}}}


def test_gitlab_service_is_dockerd_with_the_mirror() -> None:
    (service,) = parsed("gitlab")["services"]
    assert service == {"name": "docker:dind", "command": ["--registry-mirror", "http://cache.lan:5001"]}


def test_ansible_playbook_runs_the_attach_script() -> None:
    (play,) = parsed("ansible")
    fetch, run = play["tasks"]
    assert fetch["ansible.builtin.get_url"]["url"] == "http://cache.lan:5001/setup/attach"
    assert run["ansible.builtin.command"] == fetch["ansible.builtin.get_url"]["dest"]
