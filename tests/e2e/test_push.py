"""A logged-in dockerd pushes through the proxy, and the tag it moved is not served from before."""

import pytest
from support.lab.clients import Docker, Skopeo
from support.lab.images import layer
from support.lab.origin import PASSWORD, USER, Origin
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def _login(docker: Docker) -> None:
    docker("login", "--username", USER, "--password-stdin", stdin=PASSWORD)


def test_pull_after_a_push_gets_the_new_content(
    proxied_docker: Docker, proxied_skopeo: Skopeo, hub: Hub, origin: Origin
) -> None:
    docker, name = proxied_docker, f"{USER}/moved:1"
    first = origin.publisher.image(f"{USER}/moved", "1", [layer({"etc/old": b"old"})], config={})
    assert proxied_skopeo.digest(name) == first.digest
    _login(docker)
    for source in (origin.debian, origin.webapp):
        docker("pull", source.name)
        docker("tag", source.name, name)
        docker("push", name)
        pushed = docker.pulled_digest(name)
        assert pushed != first.digest
        hub.reset_log()
        for attempt in ("cold", "warm"):
            proxied_skopeo.pull(f"docker.io/{name}", f"{source.tag}-{attempt}")
            assert proxied_skopeo.digest(name) == pushed
        assert hub.count(kind="manifest", method="GET", status=200) == 1


def test_new_repository_is_seen_by_everyone_after_its_first_push(
    proxied_docker: Docker, proxied_skopeo: Skopeo, origin: Origin
) -> None:
    docker, name = proxied_docker, f"{USER}/new:1"
    proxied_skopeo("inspect", f"docker://docker.io/{name}", fails=True)
    _login(docker)
    docker("pull", origin.debian.name)
    docker("tag", origin.debian.name, name)
    docker("push", name)
    assert proxied_skopeo.digest(name) == docker.pulled_digest(name)


def test_wrong_password_is_refused(proxied_docker: Docker, hub: Hub) -> None:
    proxied_docker("login", "--username", USER, "--password-stdin", stdin="wrong", fails=True)
    assert hub.count(kind="token", status=401) > 0


def test_private_image_is_for_its_user_only(
    proxied_docker: Docker, proxied_skopeo: Skopeo, hub: Hub, origin: Origin
) -> None:
    docker, name = proxied_docker, f"{USER}/secret:1"
    hub.private(f"{USER}/secret", {USER})
    _login(docker)
    docker("pull", origin.debian.name)
    docker("tag", origin.debian.name, name)
    docker("push", name)
    docker.forget(origin.debian.name, name)
    docker("pull", name)
    proxied_skopeo("inspect", f"docker://docker.io/{name}", fails=True)
    docker("logout")
    docker.forget(name)
    docker("pull", name, fails=True)
