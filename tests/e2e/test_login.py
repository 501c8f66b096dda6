"""A private image, pulled by real daemons: its user gets it; other users do not, even if they have its layers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.e2e.client_settings import ClientSettings
from support.e2e.clients import Docker
from support.e2e.images import PublishedImage, layer
from support.e2e.upstream import PASSWORD, USER, Upstream
from support.program import LISTENERS, Program
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]

REPO = f"{USER}/vault"
NAME = f"{REPO}:1"
SHARED = "shared:1"
"""A public image with the layer of the private image."""


@pytest.fixture(params=["bypass", "authorize"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each value of `hubcache_private`."""
    return str(request.param)


@pytest.fixture
def options(mode: str) -> dict[str, str]:
    return {"hubcache_private": mode}


@pytest.fixture
def private_image(upstream: Upstream) -> PublishedImage:
    """An image that `USER` alone may pull."""
    secret = layer({"etc/secret": b"of alice"})
    upstream.publisher.image(f"library/{SHARED.partition(':')[0]}", "1", [secret], config={"Env": ["PUBLIC=yes"]})
    upstream.hub.private(REPO, {USER})
    return upstream.publisher.image(REPO, "1", [secret], config={"Env": ["PUBLIC=no"]})


@pytest.fixture
def logged_in(proxy_docker: Docker) -> Docker:
    """The user's dockerd, after `docker login` through the proxy."""
    proxy_docker("login", "--username", USER, "--password-stdin", stdin=PASSWORD)
    return proxy_docker


@pytest.fixture
def other_docker(workspace: Path, program: Program) -> Iterator[Callable[[str], Docker]]:
    """Starts the dockerd of another user, who is not logged in, at a listener."""
    started: list[Docker] = []

    def start(listener: str) -> Docker:
        directory = workspace / f"o{len(started)}"
        directory.mkdir()
        started.append(Docker(directory, ClientSettings(listener, program, directory)))
        return started[-1]

    yield start
    for docker in started:
        docker.stop()


def test_user_pulls_the_private_image_repeatedly(
    logged_in: Docker, hub: Hub, private_image: PublishedImage, mode: str
) -> None:
    logged_in("pull", NAME)
    assert logged_in.pulled_digest(NAME) == private_image.digest
    logged_in.forget(NAME)
    hub.reset_log()
    logged_in("pull", NAME)
    assert logged_in.pulled_digest(NAME) == private_image.digest
    is_stored = hub.count(kind="cdn", method="GET") == 0
    assert is_stored is (mode == "authorize")
    assert hub.count(kind="manifest", user=USER, status=200) > 0
    logged_in("logout")
    logged_in.forget(NAME)
    logged_in("pull", NAME, fails=True)


@pytest.mark.parametrize("listener", LISTENERS)
def test_other_user_is_refused_even_with_the_layers(
    logged_in: Docker, other_docker: Callable[[str], Docker], private_image: PublishedImage, listener: str
) -> None:
    logged_in("pull", NAME)
    other = other_docker(listener)
    by_digest = f"{REPO}@{private_image.digest}"
    for name in (NAME, by_digest):
        other("pull", name, fails=True)
    other("pull", SHARED)
    for name in (NAME, by_digest):
        other("pull", name, fails=True)
    assert other("image", "ls", "--quiet", REPO) == ""
    logged_in("pull", NAME)


def test_refused_user_reads_that_a_login_may_help(logged_in: Docker, hub: Hub) -> None:
    """dockerd reports it where the refusal of a client with a token has `error="insufficient_scope"`."""
    hub.private("carol/secret", {"carol": "carol's"})
    message = logged_in("pull", "carol/secret:1", fails=True)
    assert "pull access denied" in message
    assert "docker login" in message


def test_private_image_is_refused_during_an_outage_and_pulled_after_it(
    logged_in: Docker, program: Program, hub: Hub, private_image: PublishedImage
) -> None:
    """Unlike a public image: without the registry, access cannot be verified."""
    logged_in("pull", NAME)
    logged_in.forget(NAME)
    hub.stop()
    hub.accounts.revoke()
    logged_in("pull", NAME, fails=True)
    hub.start()
    program.wait_for_upstreams()
    logged_in("pull", NAME)
    assert logged_in.pulled_digest(NAME) == private_image.digest
