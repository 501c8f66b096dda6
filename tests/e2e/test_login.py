"""A private image, pulled by real daemons: its user gets it, and a stranger does not, whatever he has already."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.lab.clients import Docker
from support.lab.doors import Door
from support.lab.images import Published, layer
from support.lab.origin import PASSWORD, USER, Origin
from support.lab.product import Cache
from support.processes import wait_for
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]

REPO = f"{USER}/vault"
NAME = f"{REPO}:1"


SHARED = "shared:1"
"""A public image with the private one's layer."""


@pytest.fixture(params=["bypass", "authorize"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each way to treat private images."""
    return str(request.param)


@pytest.fixture
def cache(mode: str, room: Path, hub: Hub) -> Iterator[Cache]:
    """A cache that treats private images so."""
    running = Cache(room, hub.url(), hubcache_private=mode)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def vault(origin: Origin) -> Published:
    """The private image."""
    secret = layer({"etc/secret": b"of alice"})
    origin.publisher.image(f"library/{SHARED.partition(':')[0]}", "1", [secret], config={"Env": ["PUBLIC=yes"]})
    origin.hub.private(REPO, {USER})
    return origin.publisher.image(REPO, "1", [secret], config={"Env": ["PUBLIC=no"]})


@pytest.fixture
def logged_in(proxied_docker: Docker) -> Docker:
    """The user's dockerd, after `docker login` through the proxy."""
    proxied_docker("login", "--username", USER, "--password-stdin", stdin=PASSWORD)
    return proxied_docker


@pytest.fixture
def stranger(room: Path, cache: Cache) -> Iterator[Callable[[str], Docker]]:
    """Starts somebody else's dockerd behind a door."""
    started: list[Docker] = []

    def start(door: str) -> Docker:
        own = room / f"s{len(started)}"
        own.mkdir()
        started.append(Docker(own, Door(door, cache, own)))
        return started[-1]

    yield start
    for docker in started:
        docker.stop()


def up(cache: Cache) -> bool:
    """Whether all circuits are closed."""
    states = [line for line in cache.metrics().splitlines() if line.startswith("hubcache_upstream_up{")]
    return bool(states) and all(line.endswith(" 1.0") for line in states)


def test_user_pulls_the_private_image_again_and_again(logged_in: Docker, hub: Hub, vault: Published, mode: str) -> None:
    logged_in("pull", NAME)
    assert logged_in.pulled_digest(NAME) == vault.digest
    logged_in.forget(NAME)
    hub.reset_log()
    logged_in("pull", NAME)
    assert logged_in.pulled_digest(NAME) == vault.digest
    assert (hub.count(kind="cdn", method="GET") == 0) is (mode == "authorize"), "kept, or passed through"
    assert hub.count(kind="manifest", user=USER, status=200) > 0
    logged_in("logout")
    logged_in.forget(NAME)
    logged_in("pull", NAME, fails=True)


@pytest.mark.parametrize("door", ["proxy", "mirror"])
def test_stranger_is_refused_also_when_he_has_the_layers(
    logged_in: Docker, stranger: Callable[[str], Docker], vault: Published, door: str
) -> None:
    logged_in("pull", NAME)
    other = stranger(door)
    by_digest = f"{REPO}@{vault.digest}"
    for name in (NAME, by_digest):
        other("pull", name, fails=True)
    other("pull", SHARED)
    for name in (NAME, by_digest):
        other("pull", name, fails=True)
    assert other("image", "ls", "--quiet", REPO) == ""
    logged_in("pull", NAME)


def test_user_without_the_right_is_told_that_a_login_may_help(logged_in: Docker, hub: Hub) -> None:
    """dockerd says so where the refusal of a client with a token keeps `error="insufficient_scope"`."""
    hub.private("carol/secret", {"carol": "carol's"})
    said = logged_in.refusal("carol/secret:1")
    assert "pull access denied" in said
    assert "docker login" in said


def test_private_image_is_not_to_be_had_while_nobody_can_say_who_may(
    logged_in: Docker, cache: Cache, hub: Hub, vault: Published
) -> None:
    """Unlike a public one; and it is there again after the outage."""
    logged_in("pull", NAME)
    logged_in.forget(NAME)
    hub.stop()
    hub.accounts.revoke()
    logged_in("pull", NAME, fails=True)
    hub.start()
    wait_for(lambda: up(cache), 30, "the cache's probe")
    logged_in("pull", NAME)
    assert logged_in.pulled_digest(NAME) == vault.digest
