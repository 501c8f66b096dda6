"""A real dockerd pulls twice, and the second pull never leaves the machine."""

import pytest
from support.lab.clients import Docker
from support.lab.origin import Origin
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def test_second_pull_asks_upstream_for_nothing_and_the_image_runs(docker: Docker, hub: Hub, origin: Origin) -> None:
    docker("pull", origin.webapp.name)
    assert hub.count(kind="cdn") > 0
    docker.forget(origin.webapp.name)
    hub.reset_log()
    docker("pull", origin.webapp.name)
    assert hub.count() == 0
    assert docker.pulled_digest(origin.webapp.name) == origin.webapp.digest
    said = docker("run", "--rm", "--network", "none", origin.webapp.name)
    assert said.strip() == origin.greeting


def test_each_blob_and_manifest_is_fetched_once(docker: Docker, hub: Hub, origin: Origin) -> None:
    docker("pull", origin.webapp.name)
    wanted = len(origin.webapp.layers) + 1
    assert hub.count(kind="cdn", method="GET") == wanted
    assert hub.count(kind="manifest", method="GET", status=200) == 1
    docker("pull", origin.debian.name)
    assert hub.count(kind="cdn", method="GET") == wanted + 1, "only the other image's config; its layer is shared"


def test_index_is_pulled_for_the_own_platform_only(docker: Docker, hub: Hub, origin: Origin) -> None:
    docker("pull", origin.multi.name)
    assert docker.pulled_digest(origin.multi.name) == origin.multi.digest
    assert hub.count(kind="manifest", method="GET", status=200) == 2
    docker.forget(origin.multi.name)
    hub.reset_log()
    docker("pull", origin.multi.name)
    assert hub.count() == 0


def test_pull_by_digest_is_served_without_upstream(docker: Docker, hub: Hub, origin: Origin) -> None:
    docker("pull", origin.debian.name)
    docker.forget(origin.debian.name)
    hub.reset_log()
    docker("pull", f"debian@{origin.debian.digest}")
    assert hub.count() == 0


def test_unknown_image_fails_with_a_clear_message(docker: Docker, hub: Hub) -> None:
    docker("pull", "nobody/nothing:here", fails=True)
    assert hub.count(kind="cdn") == 0
