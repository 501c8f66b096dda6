"""Registries in one process have separate upstreams, names, tokens and content."""

import base64
import json
from collections.abc import Iterator

import pytest
from support.http_client import Answer, wait_until
from support.program import ACCEPT, HUB_HOST, LISTENERS, Program, RegistryClient, running_program
from support.standin import Hub, random_bytes

OTHER = "registry.example.org"
WITH_PORT = "images.example.net:5443"
CONNECTION_CLOSED = r"(?i)eof|reset|closed"


@pytest.fixture(scope="module")
def hubs() -> Iterator[tuple[Hub, Hub, Hub]]:
    with Hub() as hub, Hub() as other, Hub() as ported:
        ported.auth = False
        yield hub, other, ported


@pytest.fixture(scope="module")
def program(hubs: tuple[Hub, Hub, Hub]) -> Iterator[Program]:
    hub, other, ported = hubs
    registries = [f"{HUB_HOST}={hub.url()}", f"{OTHER}={other.url()}", f"{WITH_PORT}={ported.url()}/"]
    with running_program(hub, hubcache_registries=registries) as program:
        yield program


@pytest.fixture(params=LISTENERS)
def client(request: pytest.FixtureRequest, program: Program) -> Iterator[RegistryClient]:
    yield program.client(request.param)
    program.assert_no_errors()


def get(client: RegistryClient, registry: str, path: str, **headers: str) -> Answer:
    """Send a request for one registry: to its host at the proxy listener, with `?ns=` at the mirror listener."""
    if not client.is_proxy:
        return client.request("GET", f"{path}?ns={registry}", headers)
    host, _, port = registry.partition(":")
    return client.request("GET", path, headers, host=host, port=int(port or 443))


def test_each_registry_has_its_own_content_under_the_same_name(
    client: RegistryClient, hubs: tuple[Hub, Hub, Hub]
) -> None:
    names = (HUB_HOST, OTHER, WITH_PORT)
    images = [
        hub.image(client.repo, "latest", [random_bytes(50_000, f"{name}{client.repo}")])
        for hub, name in zip(hubs, names, strict=True)
    ]
    for _ in range(2):
        for name, image in zip(names, images, strict=True):
            answer = get(client, name, f"/v2/{client.repo}/manifests/latest", **ACCEPT)
            assert (answer.status, answer.body) == (200, image.manifest)
            layer = get(client, name, f"/v2/{client.repo}/blobs/{image.layers[0]}")
            assert layer.body == random_bytes(50_000, f"{name}{client.repo}")


def test_content_of_one_registry_is_not_served_as_that_of_another(
    client: RegistryClient, hubs: tuple[Hub, Hub, Hub]
) -> None:
    image = hubs[0].image(client.repo, "latest", [random_bytes(1000, client.repo)])
    hubs[1].image(client.repo, "other")
    assert get(client, HUB_HOST, f"/v2/{client.repo}/manifests/latest").status == 200
    assert get(client, HUB_HOST, f"/v2/{client.repo}/blobs/{image.layers[0]}").status == 200
    assert get(client, OTHER, f"/v2/{client.repo}/manifests/latest").status == 404
    assert get(client, OTHER, f"/v2/{client.repo}/manifests/{image.digest}").status == 404
    assert get(client, OTHER, f"/v2/{client.repo}/blobs/{image.layers[0]}").status == 404


def test_ping_of_a_registry_has_its_own_challenge_with_an_intercepted_realm(
    client: RegistryClient, hubs: tuple[Hub, Hub, Hub]
) -> None:
    if client.is_proxy:
        answer = get(client, OTHER, "/v2/")
        assert answer.failure == (401, "UNAUTHORIZED")
        realm = f"https://{OTHER}/.hubcache/token"
        assert answer.headers["www-authenticate"] == f'Bearer realm="{realm}",service="{hubs[1].service}"'
    else:
        assert get(client, OTHER, "/v2/").status == 200


def test_tokens_of_another_registry_are_served_on_its_own_host(program: Program, hubs: tuple[Hub, Hub, Hub]) -> None:
    """Anonymous tokens need no token service; a user's token comes from the real one and grants access."""
    client, hub = program.client("proxy"), hubs[1]
    hub.image(client.repo, "latest")
    hub.private(client.repo, {"alice": "secret"})
    query = f"service=registry.docker.io&scope=repository:{client.repo}:pull"
    alice = "Basic " + base64.b64encode(b"alice:secret").decode()
    hub.stop("token")
    try:
        answer = get(client, OTHER, f"/.hubcache/token?{query}")
        assert (answer.status, json.loads(answer.body)["token"]) == (200, "hubcache-anonymous")
    finally:
        hub.start()
    wait_until(lambda: not program.health["upstreams_down"])
    form = f"grant_type=password&username=alice&password=secret&{query}".encode()
    posted = {"Content-Type": "application/x-www-form-urlencoded"}
    for answer in (
        get(client, OTHER, f"/.hubcache/token?{query}", Authorization=alice),
        client.request("POST", "/.hubcache/token", posted, body=form, host=OTHER),
    ):
        token = json.loads(answer.body)["token"]
        path = f"/v2/{client.repo}/manifests/latest"
        assert get(client, OTHER, path, Authorization=f"Bearer {token}", **ACCEPT).status == 200


def test_ping_of_a_registry_without_accounts_is_200(client: RegistryClient) -> None:
    assert get(client, WITH_PORT, "/v2/").status == 200


def test_mirror_answers_name_the_namespace(program: Program, hubs: tuple[Hub, Hub, Hub]) -> None:
    mirror = program.client("mirror")
    for hub, name, namespace in zip(hubs, (HUB_HOST, OTHER, WITH_PORT), ("docker.io", OTHER, WITH_PORT), strict=True):
        hub.image(mirror.repo, "latest")
        answer = get(mirror, name, f"/v2/{mirror.repo}/manifests/latest")
        assert answer.headers["oci-namespace"] == namespace


def test_mirror_of_another_registry_serves_that_registry(hubs: tuple[Hub, Hub, Hub]) -> None:
    hub, other, _ = hubs
    registries = [f"{HUB_HOST}={hub.url()}", f"{OTHER}={other.url()}"]
    with running_program(hub, mirror_of=OTHER, hubcache_registries=registries) as second:
        mirror = second.client("mirror")
        image = other.image(mirror.repo, "latest", annotations={"of": OTHER})
        assert mirror.manifest("latest").body == image.manifest


@pytest.mark.parametrize("host", ["registry.example.com", "docker.io", "auth.example.org"])
def test_hosts_that_are_not_configured_are_not_intercepted(program: Program, host: str) -> None:
    """These hosts do not exist, so the tunnel ends before the client gets a certificate."""
    with program.tunnel(host, 443) as tunnel, pytest.raises(OSError, match=CONNECTION_CLOSED):
        program.ssl_context().wrap_socket(tunnel, server_hostname=host)


def test_other_port_of_a_configured_host_is_not_intercepted(program: Program) -> None:
    with program.tunnel(OTHER, 8443) as tunnel, pytest.raises(OSError, match=CONNECTION_CLOSED):
        program.ssl_context().wrap_socket(tunnel, server_hostname=OTHER)
