"""The mirror role as clients are configured for it: how they learn of it, and where they go when it has nothing."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.lab.clients import Containerd, Docker, Skopeo
from support.lab.doors import Door
from support.lab.origin import Origin
from support.lab.product import Cache
from support.processes import wait_for
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]

type Dockers = Callable[..., Docker]


@pytest.fixture
def caches(room: Path, hub: Hub) -> Iterator[Callable[..., Cache]]:
    """Starts a cache; each in a room of its own."""
    started: list[Cache] = []

    def start(name: str, **options: str) -> Cache:
        directory = room / name
        directory.mkdir()
        started.append(cache := Cache(directory, hub.url(), **options))
        cache.start()
        return cache

    yield start
    for cache in started:
        cache.stop()


def by_flag(room: Path, url: str) -> list[str]:
    return ["--registry-mirror", url]


def by_daemon_json(room: Path, url: str) -> list[str]:
    file = room / "daemon.json"
    file.write_text(json.dumps({"registry-mirrors": [url]}))
    return ["--config-file", str(file)]


def by_default_file(room: Path, url: str) -> list[str]:
    """`/etc/default/docker`, as Debian's service and init script read it."""
    file = room / "default-docker"
    file.write_text(f'DOCKER_OPTS="--registry-mirror={url}"\n')
    script = f'. {file}; printf "%s\\n" $DOCKER_OPTS'
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("configured", [by_flag, by_daemon_json, by_default_file])
def test_docker_info_lists_the_mirror_and_pulls_go_there(
    dockers: Dockers, cache: Cache, room: Path, origin: Origin, configured: Callable[[Path, str], list[str]]
) -> None:
    door = Door("mirror", cache, room)
    docker = dockers(door, *configured(room, door.mirror_url))
    assert f"Registry Mirrors:\n  {door.mirror_url}/" in docker("system", "info")
    docker("pull", origin.debian.name)  # its proxy is dead: there is no other way
    assert 'door="mirror",kind="blob"' in cache.metrics()


def test_image_that_only_the_second_mirror_has_comes_from_there(
    dockers: Dockers, caches: Callable[..., Cache], room: Path, hub: Hub, origin: Origin
) -> None:
    first, second = caches("first", hubcache_mirror_miss="notfound"), caches("second")
    warm = Skopeo(room, Door("mirror", second, room))
    warm.pull(origin.debian.full_name, "warm")
    hub.reset_log()
    docker = dockers(
        Door("mirror", second, room),
        *("--registry-mirror", Door("mirror", first, room).mirror_url),
        *("--registry-mirror", Door("mirror", second, room).mirror_url),
    )
    docker("pull", origin.debian.name)
    assert docker.pulled_digest(origin.debian.name) == origin.debian.digest
    assert hub.count() == 0
    assert 'door="mirror",kind="manifest",result="error"' in first.metrics()


def test_mirror_without_the_image_sends_to_the_hub_until_it_was_asked_for_often_enough(
    dockers: Dockers, caches: Callable[..., Cache], room: Path, hub: Hub, origin: Origin
) -> None:
    """And then has it whole, also when the Hub is gone."""
    mirror, way_to_hub = caches("mirror", hubcache_mirror_miss="notfound"), caches("hub", hubcache_tag_ttl="0")
    asked = Skopeo(room, Door("mirror", mirror, room))
    docker = dockers(Door("proxy", way_to_hub, room), "--registry-mirror", Door("mirror", mirror, room).mirror_url)
    docker("pull", origin.webapp.name)
    assert 'door="proxy",kind="blob"' in way_to_hub.metrics(), "dockerd went on to the Hub"
    assert 'kind="blob",result="hit"' not in mirror.metrics()

    asked("inspect", "--raw", f"docker://{origin.webapp.full_name}", fails=True)  # the second of two requests
    wait_for(lambda: whole(mirror, origin), 30, "the image in the mirror")
    asked.pull(origin.webapp.full_name, "copy")
    docker.forget(origin.webapp.name)
    way_to_hub.stop()
    hub.stop()
    docker("pull", origin.webapp.name)
    assert docker("run", "--rm", "--network", "none", origin.webapp.name).strip() == origin.greeting


def whole(cache: Cache, origin: Origin) -> bool:
    """Whether the store has the manifest, the config and all layers."""
    wanted = 2 + len(origin.webapp.layers)
    return f"hubcache_store_objects {wanted}.0" in cache.metrics()


@dataclass(frozen=True)
class MirrorThenHub(Door):
    """A mirror, and a proxy through which the Hub can be reached."""

    way_to_hub: Cache

    @property
    def environment(self) -> dict[str, str]:
        return Door("proxy", self.way_to_hub, self.room).environment


def test_containerd_goes_on_to_the_hub_where_the_mirror_has_nothing(
    caches: Callable[..., Cache], room: Path, origin: Origin
) -> None:
    mirror, way_to_hub = caches("mirror", hubcache_mirror_miss="notfound"), caches("hub")
    containerd = Containerd(room, MirrorThenHub("mirror", mirror, room, way_to_hub))
    try:
        containerd.pull(origin.multi.full_name)
        assert containerd.digest(origin.multi.full_name) == origin.multi.digest
    finally:
        containerd.stop()
    assert 'door="proxy",kind="blob"' in way_to_hub.metrics()
    assert 'door="mirror",kind="manifest",result="error"' in mirror.metrics()
