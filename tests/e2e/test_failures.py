"""Crashes, disconnecting clients and broken transfers, with real clients."""

import pytest
from support.e2e.clients import Docker, Skopeo
from support.e2e.upstream import Upstream
from support.http_client import wait_until
from support.program import Program
from support.standin import Fault, Hub
from support.worker_processes import crash

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def test_pull_survives_a_crash_of_the_cache(
    docker: Docker, proxy_skopeo: Skopeo, program: Program, hub: Hub, upstream: Upstream
) -> None:
    slow = hub.faults.add(Fault(kind="cdn", rate=4_000_000))
    pull = docker.pulling(upstream.webapp.name)
    try:
        wait_until(lambda: hub.sent(kind="cdn") > 8_000_000, 60, "8 MB of the base layer")
        crash(program)
        hub.faults.remove(slow)
        program.start()
        assert pull.wait(120) == 0
    finally:
        pull.kill()
        pull.wait()
    docker("pull", upstream.webapp.name)
    assert docker("run", "--rm", "--network", "none", upstream.webapp.name).strip() == upstream.greeting
    # dockerd continues layers where the crash cut them off: their fills end later than its pull.
    wait_until(lambda: program.metric("hubcache_fills_in_flight") == 0, what="all fills")
    hub.stop()
    copied = proxy_skopeo.pull(upstream.webapp.full_name, "after")
    assert (copied / "manifest.json").read_bytes() == upstream.webapp.manifest


def test_fill_goes_on_when_its_client_disconnects(
    docker: Docker, proxy_skopeo: Skopeo, hub: Hub, upstream: Upstream
) -> None:
    hub.faults.add(Fault(kind="cdn", rate=10_000_000))
    pull = docker.pulling(upstream.debian.name)
    wait_until(lambda: hub.sent(kind="cdn") > 2_000_000, 60, "2 MB of the base layer")
    pull.kill()
    pull.wait()
    docker.stop()
    proxy_skopeo.pull(upstream.debian.full_name, "other")
    assert hub.count(kind="cdn", method="GET") == 2, "config and layer, once each"


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_stored_image_is_pulled_without_an_upstream(
    docker: Docker, program: Program, hub: Hub, upstream: Upstream, restart: bool
) -> None:
    docker("pull", upstream.webapp.name)
    docker.forget(upstream.webapp.name)
    hub.stop()
    if restart:
        program.stop()
        program.start()
    docker("pull", upstream.webapp.name)
    assert docker.pulled_digest(upstream.webapp.name) == upstream.webapp.digest


def test_broken_upstream_body_is_resumed(docker: Docker, hub: Hub, upstream: Upstream) -> None:
    hub.faults.add(Fault(kind="cdn", times=2, close_after=500_000))
    docker("pull", upstream.debian.name)
    assert hub.count(kind="cdn", status=206) > 0
    assert docker.pulled_digest(upstream.debian.name) == upstream.debian.digest


def test_corrupt_bytes_are_not_stored(docker: Docker, hub: Hub, upstream: Upstream) -> None:
    layer = upstream.debian.layers[0]
    corrupt = hub.faults.add(Fault(kind="cdn", path=f"*{layer}*", times=1, corrupt_at=100_000))
    docker("pull", upstream.debian.name)
    assert corrupt.hits == 1
    docker.forget(upstream.debian.name)
    hub.reset_log()
    docker("pull", upstream.debian.name)
    assert hub.count() == 0
