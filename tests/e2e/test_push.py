"""A logged-in dockerd pushes through the proxy; a pull of the pushed tag gets the new content."""

import pytest
from support.e2e.clients import Docker, Skopeo
from support.e2e.images import layer
from support.e2e.upstream import PASSWORD, USER, Upstream
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


@pytest.fixture
def docker(proxy_docker: Docker) -> Docker:
    """A dockerd that uses the proxy, after a login."""
    proxy_docker("login", "--username", USER, "--password-stdin", stdin=PASSWORD)
    return proxy_docker


def push(docker: Docker, source: str, name: str) -> None:
    """Pull an image and push it under another name."""
    docker("pull", source)
    docker("tag", source, name)
    docker("push", name)


def test_pull_after_a_push_gets_the_new_content(
    docker: Docker, proxy_skopeo: Skopeo, hub: Hub, upstream: Upstream
) -> None:
    name = f"{USER}/moved:1"
    first = upstream.publisher.image(f"{USER}/moved", "1", [layer({"etc/old": b"old"})], config={})
    assert proxy_skopeo.digest(name) == first.digest
    for source in (upstream.debian, upstream.webapp):
        push(docker, source.name, name)
        pushed = docker.pulled_digest(name)
        assert pushed != first.digest
        hub.reset_log()
        for attempt in ("cold", "warm"):
            proxy_skopeo.pull(f"docker.io/{name}", f"{source.tag}-{attempt}")
            assert proxy_skopeo.digest(name) == pushed
        assert hub.count(kind="manifest", method="GET", status=200) == 1


def test_new_repository_is_found_after_its_first_push(docker: Docker, proxy_skopeo: Skopeo, upstream: Upstream) -> None:
    name = f"{USER}/new:1"
    proxy_skopeo("inspect", f"docker://docker.io/{name}", fails=True)
    push(docker, upstream.debian.name, name)
    assert proxy_skopeo.digest(name) == docker.pulled_digest(name)


def test_wrong_password_is_refused(proxy_docker: Docker, hub: Hub) -> None:
    proxy_docker("login", "--username", USER, "--password-stdin", stdin="wrong", fails=True)
    assert hub.count(kind="token", status=401) > 0


def test_pushed_private_image_is_pulled_by_its_user_alone(
    docker: Docker, proxy_skopeo: Skopeo, hub: Hub, upstream: Upstream
) -> None:
    name = f"{USER}/secret:1"
    hub.private(f"{USER}/secret", {USER})
    push(docker, upstream.debian.name, name)
    docker.forget(upstream.debian.name, name)
    docker("pull", name)
    proxy_skopeo("inspect", f"docker://docker.io/{name}", fails=True)
    docker("logout")
    docker.forget(name)
    docker("pull", name, fails=True)
