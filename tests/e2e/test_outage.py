"""Outages of all kinds with a real dockerd: what was pulled once is pulled again, and `docker pull` exits with 0."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lab.clients import Docker
from support.lab.images import layer
from support.lab.origin import PASSWORD, USER, Origin
from support.lab.product import Cache
from support.processes import wait_for
from support.standin import Fault, Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]

FAULTS = ("stopped", "blackholed", "503", "429", "html")


@pytest.fixture
def cache(room: Path, hub: Hub) -> Iterator[Cache]:
    """Tags are never fresh: each pull would ask."""
    running = Cache(room, hub.url(), hubcache_tag_ttl="0")
    running.start()
    yield running
    running.stop()


def break_hub(hub: Hub, fault: str, *listeners: str) -> None:
    """All three services, or these."""
    kind = "token" if listeners == ("token",) else "*"
    match fault:
        case "stopped":
            hub.stop(*listeners)
        case "blackholed":
            hub.blackhole(*listeners)
        case "html":
            hub.faults.add(Fault(kind=kind, status=200, body="<html>maintenance</html>"))
        case status:
            hub.faults.add(Fault(kind=kind, status=int(status), body="Too Many Requests (HAP429)."))


def up(cache: Cache) -> bool:
    """Whether all circuits are closed."""
    states = [line for line in cache.metrics().splitlines() if line.startswith("hubcache_upstream_up{")]
    return bool(states) and all(line.endswith(" 1.0") for line in states)


def repair(hub: Hub) -> None:
    hub.faults.clear()
    hub.start()


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_stale_tag_is_pulled_whatever_happened_to_the_hub(
    docker: Docker, cache: Cache, hub: Hub, origin: Origin, restart: bool
) -> None:
    """An index, and so a tag, two manifests, config and layers."""
    docker("pull", origin.multi.name)
    for fault in FAULTS:
        docker.forget(origin.multi.name)
        break_hub(hub, fault)
        if restart:
            cache.stop()
            cache.start()
        docker("pull", origin.multi.name)
        assert docker.pulled_digest(origin.multi.name) == origin.multi.digest
        repair(hub)


def test_logged_in_user_pulls_a_stored_public_image_whatever_happened_to_the_token_service(
    proxied_docker: Docker, cache: Cache, hub: Hub, origin: Origin
) -> None:
    docker = proxied_docker
    docker("login", "--username", USER, "--password-stdin", stdin=PASSWORD)
    docker("pull", origin.multi.name)
    for fault in FAULTS:
        docker.forget(origin.multi.name)
        break_hub(hub, fault, "token")
        docker("pull", origin.multi.name)
        docker("login", "--username", "mallory", "--password-stdin", stdin="guess", fails=True)
        repair(hub)
        wait_for(lambda: up(cache), 30, "the cache's probe")


def test_image_that_is_not_stored_fails_at_once_and_is_there_after_the_outage(
    docker: Docker, cache: Cache, hub: Hub, origin: Origin
) -> None:
    origin.publisher.image("library/unseen", "1", [layer({"etc/unseen": b"yet"})], config={})
    docker("pull", origin.multi.name)
    hub.stop()
    docker("pull", "unseen:1", fails=True, timeout=20)
    repair(hub)
    wait_for(lambda: up(cache), 30, "the cache's probe")
    docker("pull", "unseen:1")
