"""Outages with a real dockerd: an image that was pulled once is pulled again, and `docker pull` exits with 0."""

import pytest
from support.e2e.clients import Docker
from support.e2e.images import layer
from support.e2e.upstream import PASSWORD, USER, Upstream
from support.program import Program
from support.standin import Fault, Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]

FAULTS = ("stopped", "blackholed", "503", "429", "html")


@pytest.fixture
def options() -> dict[str, str]:
    """Tags are never fresh: each pull would validate them."""
    return {"hubcache_tag_ttl": "0"}


def break_hub(hub: Hub, fault: str, *listeners: str) -> None:
    """Break these services of the Hub, or all three."""
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


def repair(hub: Hub) -> None:
    """Remove all faults of the Hub."""
    hub.faults.clear()
    hub.start()


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_stale_tag_is_pulled_during_every_kind_of_outage(
    docker: Docker, program: Program, hub: Hub, upstream: Upstream, restart: bool
) -> None:
    """The image is an index, so that the pull needs a tag, two manifests, a config and layers."""
    docker("pull", upstream.multi.name)
    for fault in FAULTS:
        docker.forget(upstream.multi.name)
        break_hub(hub, fault)
        if restart:
            program.stop()
            program.start()
        docker("pull", upstream.multi.name)
        assert docker.pulled_digest(upstream.multi.name) == upstream.multi.digest
        repair(hub)


def test_logged_in_user_pulls_a_stored_public_image_without_the_token_service(
    proxy_docker: Docker, program: Program, hub: Hub, upstream: Upstream
) -> None:
    docker = proxy_docker
    docker("login", "--username", USER, "--password-stdin", stdin=PASSWORD)
    docker("pull", upstream.multi.name)
    for fault in FAULTS:
        docker.forget(upstream.multi.name)
        break_hub(hub, fault, "token")
        docker("pull", upstream.multi.name)
        docker("login", "--username", "mallory", "--password-stdin", stdin="guess", fails=True)
        repair(hub)
        program.wait_for_upstreams()


def test_image_that_is_not_stored_fails_soon_and_is_pulled_after_the_outage(
    docker: Docker, program: Program, hub: Hub, upstream: Upstream
) -> None:
    upstream.publisher.image("library/unseen", "1", [layer({"etc/unseen": b"yet"})], config={})
    docker("pull", upstream.multi.name)
    hub.stop()
    docker("pull", "unseen:1", fails=True, timeout=20)
    repair(hub)
    program.wait_for_upstreams()
    docker("pull", "unseen:1")
