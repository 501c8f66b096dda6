"""Crashes and outages, with real clients."""

import pytest
from support.lab.clients import Docker, Skopeo
from support.lab.origin import Origin
from support.lab.product import Cache
from support.processes import wait_for
from support.standin import Fault, Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def test_pull_survives_a_crash_of_the_cache(
    docker: Docker, proxied_skopeo: Skopeo, cache: Cache, hub: Hub, origin: Origin
) -> None:
    slow = hub.faults.add(Fault(kind="cdn", rate=4_000_000))
    pull = docker.pulling(origin.webapp.name)
    try:
        wait_for(lambda: hub.sent(kind="cdn") > 8_000_000, 60, "a good part of the base layer")
        cache.kill()
        hub.faults.remove(slow)
        cache.start()
        pull.wait(120)
    finally:
        pull.kill()
        pull.wait()
    docker("pull", origin.webapp.name)
    assert docker("run", "--rm", "--network", "none", origin.webapp.name).strip() == origin.greeting
    hub.stop()
    copied = proxied_skopeo.pull(origin.webapp.full_name, "after")
    assert (copied / "manifest.json").read_bytes() == origin.webapp.manifest


def test_client_that_leaves_does_not_end_the_fetch(
    docker: Docker, proxied_skopeo: Skopeo, hub: Hub, origin: Origin
) -> None:
    hub.faults.add(Fault(kind="cdn", rate=10_000_000))
    pull = docker.pulling(origin.debian.name)
    wait_for(lambda: hub.sent(kind="cdn") > 2_000_000, 60, "the start of the base layer")
    pull.kill()
    pull.wait()
    docker.stop()
    proxied_skopeo.pull(origin.debian.full_name, "other")
    assert hub.count(kind="cdn", method="GET") == 2, "config and layer, once each"


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_warm_pull_needs_no_upstream_at_all(
    docker: Docker, cache: Cache, hub: Hub, origin: Origin, restart: bool
) -> None:
    docker("pull", origin.webapp.name)
    docker.forget(origin.webapp.name)
    hub.stop()
    if restart:
        cache.stop()
        cache.start()
    docker("pull", origin.webapp.name)
    assert docker.pulled_digest(origin.webapp.name) == origin.webapp.digest


def test_broken_upstream_body_is_resumed_unseen_by_the_client(docker: Docker, hub: Hub, origin: Origin) -> None:
    hub.faults.add(Fault(kind="cdn", times=2, close_after=500_000))
    docker("pull", origin.debian.name)
    assert hub.count(kind="cdn", status=206) > 0
    assert docker.pulled_digest(origin.debian.name) == origin.debian.digest


def test_corrupt_bytes_are_never_kept(docker: Docker, hub: Hub, origin: Origin) -> None:
    spoiled = hub.faults.add(Fault(kind="cdn", path=f"*{origin.debian.layers[0]}*", times=1, corrupt_at=100_000))
    docker("pull", origin.debian.name)
    assert spoiled.hits == 1
    docker.forget(origin.debian.name)
    hub.reset_log()
    docker("pull", origin.debian.name)
    assert hub.count() == 0
