"""Several registries in one process: each has its own upstream, names, tokens and content."""

import base64
import json
from collections.abc import Iterator

import pytest
from support import program
from support.http_client import Answer, wait_until
from support.program import Door, Rig, running
from support.standin import Hub, random_bytes

OTHER = "registry.example.org"
PORTED = "images.example.net:5443"
CLOSED = r"(?i)eof|reset|closed"


@pytest.fixture(scope="module")
def hubs() -> Iterator[tuple[Hub, Hub, Hub]]:
    with Hub() as hub, Hub() as other, Hub() as ported:
        ported.auth = False
        yield hub, other, ported


@pytest.fixture(scope="module")
def rig(hubs: tuple[Hub, Hub, Hub]) -> Iterator[Rig]:
    hub, other, ported = hubs
    registries = [f"{program.HUB_HOST}={hub.url()}", f"{OTHER}={other.url()}", f"{PORTED}={ported.url()}/"]
    with running(hub, hubcache_registries=registries) as running_rig:
        yield running_rig


@pytest.fixture(params=program.DOORS)
def door(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Door]:
    yield rig.door(request.param)
    rig.check()


def get(door: Door, registry: str, path: str, **headers: str) -> Answer:
    """Ask one registry: by its host in the proxy door, by `?ns=` in the mirror."""
    if not door.is_proxy:
        return door.request("GET", f"{path}?ns={registry}", headers)
    host, _, port = registry.partition(":")
    return door.request("GET", path, headers, host=host, port=int(port or 443))


def test_each_registry_has_its_own_content_under_the_same_name(door: Door, hubs: tuple[Hub, Hub, Hub]) -> None:
    names = (program.HUB_HOST, OTHER, PORTED)
    images = [
        hub.image(door.repo, "latest", [random_bytes(50_000, f"{name}{door.repo}")])
        for hub, name in zip(hubs, names, strict=True)
    ]
    for _ in range(2):
        for name, image in zip(names, images, strict=True):
            answer = get(door, name, f"/v2/{door.repo}/manifests/latest", **program.ACCEPT)
            assert (answer.status, answer.body) == (200, image.manifest)
            layer = get(door, name, f"/v2/{door.repo}/blobs/{image.layers[0]}")
            assert layer.body == random_bytes(50_000, f"{name}{door.repo}")


def test_content_of_one_registry_is_not_given_as_anothers(door: Door, hubs: tuple[Hub, Hub, Hub]) -> None:
    image = hubs[0].image(door.repo, "latest", [random_bytes(1000, door.repo)])
    hubs[1].image(door.repo, "other")
    assert get(door, program.HUB_HOST, f"/v2/{door.repo}/manifests/latest").status == 200
    assert get(door, program.HUB_HOST, f"/v2/{door.repo}/blobs/{image.layers[0]}").status == 200
    assert get(door, OTHER, f"/v2/{door.repo}/manifests/latest").status == 404
    assert get(door, OTHER, f"/v2/{door.repo}/manifests/{image.digest}").status == 404
    assert get(door, OTHER, f"/v2/{door.repo}/blobs/{image.layers[0]}").status == 404


def test_ping_of_a_registry_tells_its_own_challenge_with_a_realm_that_is_intercepted(
    door: Door, hubs: tuple[Hub, Hub, Hub]
) -> None:
    if door.is_proxy:
        answer = get(door, OTHER, "/v2/")
        assert answer.failure == (401, "UNAUTHORIZED")
        realm = f"https://{OTHER}/.hubcache/token"
        assert answer.headers["www-authenticate"] == f'Bearer realm="{realm}",service="{hubs[1].service}"'
    else:
        assert get(door, OTHER, "/v2/").status == 200


def test_tokens_of_another_registry_are_had_on_its_own_host(rig: Rig, hubs: tuple[Hub, Hub, Hub]) -> None:
    """Anonymous ones with every token service dead, a user's from the real one; and what was denied is had with it."""
    door, hub = rig.door("proxy"), hubs[1]
    hub.image(door.repo, "latest")
    hub.private(door.repo, {"alice": "secret"})
    query = f"service=registry.docker.io&scope=repository:{door.repo}:pull"
    alice = "Basic " + base64.b64encode(b"alice:secret").decode()
    hub.stop("token")
    try:
        answer = get(door, OTHER, f"/.hubcache/token?{query}")
        assert (answer.status, json.loads(answer.body)["token"]) == (200, "hubcache-anonymous")
    finally:
        hub.start()
    wait_until(lambda: not rig.product.health["upstreams_down"])
    form = f"grant_type=password&username=alice&password=secret&{query}".encode()
    posted = {"Content-Type": "application/x-www-form-urlencoded"}
    for answer in (
        get(door, OTHER, f"/.hubcache/token?{query}", Authorization=alice),
        door.request("POST", "/.hubcache/token", posted, body=form, host=OTHER),
    ):
        token = json.loads(answer.body)["token"]
        path = f"/v2/{door.repo}/manifests/latest"
        assert get(door, OTHER, path, Authorization=f"Bearer {token}", **program.ACCEPT).status == 200


def test_ping_of_a_registry_without_accounts_is_200(door: Door) -> None:
    assert get(door, PORTED, "/v2/").status == 200


def test_mirror_answers_tell_the_namespace(rig: Rig, hubs: tuple[Hub, Hub, Hub]) -> None:
    mirror = rig.door("mirror")
    for hub, name, namespace in zip(hubs, (program.HUB_HOST, OTHER, PORTED), ("docker.io", OTHER, PORTED), strict=True):
        hub.image(mirror.repo, "latest")
        answer = get(mirror, name, f"/v2/{mirror.repo}/manifests/latest")
        assert answer.headers["oci-namespace"] == namespace


def test_mirror_of_another_registry_serves_that_one(hubs: tuple[Hub, Hub, Hub]) -> None:
    hub, other, _ = hubs
    registries = [f"{program.HUB_HOST}={hub.url()}", f"{OTHER}={other.url()}"]
    with running(hub, mirror_of=OTHER, hubcache_registries=registries) as second:
        mirror = second.door("mirror")
        image = other.image(mirror.repo, "latest", annotations={"of": OTHER})
        assert mirror.manifest("latest").body == image.manifest


@pytest.mark.parametrize("host", ["registry.example.com", "docker.io", "auth.example.org"])
def test_hosts_that_are_not_configured_are_not_intercepted(rig: Rig, host: str) -> None:
    """Nobody is there: the tunnel ends without a certificate of ours."""
    with rig.product.tunnel(host, 443) as tunnel, pytest.raises(OSError, match=CLOSED):
        rig.product.trust().wrap_socket(tunnel, server_hostname=host)


def test_other_port_of_a_configured_host_is_not_intercepted(rig: Rig) -> None:
    with rig.product.tunnel(OTHER, 8443) as tunnel, pytest.raises(OSError, match=CLOSED):
        rig.product.trust().wrap_socket(tunnel, server_hostname=OTHER)
