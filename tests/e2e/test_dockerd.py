"""A real dockerd pulls twice; the second pull sends no request upstream."""

import pytest
from support.e2e.clients import Docker
from support.e2e.upstream import Upstream
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def test_second_pull_sends_no_request_upstream_and_the_image_runs(docker: Docker, hub: Hub, upstream: Upstream) -> None:
    docker("pull", upstream.webapp.name)
    assert hub.count(kind="cdn") > 0
    docker.forget(upstream.webapp.name)
    hub.reset_log()
    docker("pull", upstream.webapp.name)
    assert hub.count() == 0
    assert docker.pulled_digest(upstream.webapp.name) == upstream.webapp.digest
    output = docker("run", "--rm", "--network", "none", upstream.webapp.name)
    assert output.strip() == upstream.greeting


def test_each_blob_and_manifest_is_downloaded_once(docker: Docker, hub: Hub, upstream: Upstream) -> None:
    docker("pull", upstream.webapp.name)
    expected = len(upstream.webapp.layers) + 1
    assert hub.count(kind="cdn", method="GET") == expected
    assert hub.count(kind="manifest", method="GET", status=200) == 1
    docker("pull", upstream.debian.name)
    assert hub.count(kind="cdn", method="GET") == expected + 1, "the other image's config alone; its layer is shared"


def test_image_index_is_pulled_for_one_platform(docker: Docker, hub: Hub, upstream: Upstream) -> None:
    docker("pull", upstream.multi.name)
    assert docker.pulled_digest(upstream.multi.name) == upstream.multi.digest
    assert hub.count(kind="manifest", method="GET", status=200) == 2
    docker.forget(upstream.multi.name)
    hub.reset_log()
    docker("pull", upstream.multi.name)
    assert hub.count() == 0


def test_pull_by_digest_is_served_without_upstream(docker: Docker, hub: Hub, upstream: Upstream) -> None:
    docker("pull", upstream.debian.name)
    docker.forget(upstream.debian.name)
    hub.reset_log()
    docker("pull", f"debian@{upstream.debian.digest}")
    assert hub.count() == 0


def test_unknown_image_fails_with_a_clear_message(proxy_docker: Docker, hub: Hub) -> None:
    """At the mirror, dockerd would go on to the Hub, which it cannot reach here."""
    message = proxy_docker("pull", "nobody/nothing:here", fails=True)
    assert "pull access denied for nobody/nothing, repository does not exist" in message
    assert hub.count(kind="cdn") == 0
