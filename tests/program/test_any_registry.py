"""Registries that clients name, with the real program: `?ns=` at the mirror, and CONNECT at the proxy."""

import contextlib
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import network
from support.http_client import TIMEOUT, Answer, Exchange, head
from support.program import ACCEPT, HUB_HOST, Program
from support.standin import Hub, random_bytes

ONE, TWO = "one.example.org", "two.example.net"
LOOPBACK, LINK = "loopback.example.org", "link.example.org"
LAYER = random_bytes(300_000, "layer")


@pytest.fixture(scope="module")
def hubs() -> Iterator[tuple[Hub, Hub]]:
    """Two registries with certificates for their names."""
    with Hub(tls=True, names=[ONE, LOOPBACK, LINK]) as one, Hub(tls=True, names=[TWO]) as two:
        for hub, host in ((one, ONE), (two, TWO)):
            hub.auth = hub.redirects = False
            hub.realm = f"https://{host}:{hub.ports['token']}/token"
        yield one, two


@contextlib.contextmanager
def running(hubs: tuple[Hub, Hub], *patterns: str, workers: str = "1") -> Iterator[Program]:
    """Run the program with Docker Hub and these patterns."""
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(Hub())
        directory = Path(tempfile.mkdtemp(prefix="hubcache-test-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        trusted = directory / "trusted.pem"
        trusted.write_bytes(b"".join(each.ca_file.read_bytes() for each in hubs if each.ca_file is not None))
        options: dict[str, str | list[str]] = {
            "hubcache_registries": [f"{HUB_HOST}={hub.url()}", *patterns],
            "hubcache_tunnel": [f"{ONE}:*"],
            "hubcache_workers": workers,
            "ssl_verify_upstream_trusted_ca": str(trusted),
        }
        program = Program(directory, hub, options)
        names = {ONE: network.PUBLIC, TWO: network.PUBLIC, LOOPBACK: "127.0.0.1", LINK: "169.254.169.254"}
        program.command += ["-s", str(network.script(directory, names))]
        stack.callback(program.stop)
        program.start()
        yield program
        program.assert_no_errors()


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two workers"])
def program(request: pytest.FixtureRequest, hubs: tuple[Hub, Hub]) -> Iterator[Program]:
    with running(hubs, "*", workers=request.param) as started:
        yield started


def named(hub: Hub, host: str = ONE) -> str:
    return f"{host}:{hub.ports['registry']}"


def test_mirror_serves_each_registry_that_a_client_names(program: Program, hubs: tuple[Hub, Hub]) -> None:
    mirror = program.client("mirror")
    images = [hub.image(mirror.repo, "1", [LAYER, named(hub).encode()]) for hub in hubs]
    for _ in range(2):
        for hub, host, image in zip(hubs, (ONE, TWO), images, strict=True):
            namespace = named(hub, host)
            answer = mirror.request("GET", f"/v2/{mirror.repo}/manifests/1?ns={namespace}", ACCEPT)
            assert (answer.status, answer.body) == (200, image.manifest)
            assert answer.headers["oci-namespace"] == namespace
            by_header = {"OCI-Namespace": namespace}
            answer = mirror.request("GET", f"/v2/{mirror.repo}/blobs/{image.layers[0]}", by_header)
            assert (answer.status, answer.body) == (200, LAYER)
    assert [hub.count(kind="manifest", repo=mirror.repo) for hub in hubs] == [1, 1]


def test_other_requests_are_forwarded_to_the_named_registry(program: Program, hubs: tuple[Hub, Hub]) -> None:
    """mitmproxy makes these connections, even if `hubcache_tunnel` does not name the registry."""
    mirror, hub = program.client("mirror"), hubs[1]
    hub.image(mirror.repo, "1")
    answer = mirror.request("GET", f"/v2/{mirror.repo}/tags/list?ns={named(hub, TWO)}")
    assert answer.status == 200
    assert b'"1"' in answer.body


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "[::1]", "0x7f.1", "printer.local", LINK, LOOPBACK]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "manifests/1"), ("HEAD", "manifests/1"), ("GET", "tags/list"), ("POST", "blobs/uploads/")],
)
@pytest.mark.parametrize("by", ["query", "header"])
def test_no_service_of_the_machine_or_its_link_is_reached(
    program: Program, hubs: tuple[Hub, Hub], host: str, method: str, path: str, by: str
) -> None:
    mirror, hub = program.client("mirror"), hubs[0]
    hub.image(mirror.repo, "1")
    hub.reset_log()
    namespace = named(hub, host)
    query, headers = (f"?ns={namespace}", {}) if by == "query" else ("", {"OCI-Namespace": namespace})
    answer = mirror.request(method, f"/v2/{mirror.repo}/{path}{query}", headers)
    assert answer.status in ((502, 503) if host in (LINK, LOOPBACK) else (404,))
    assert hub.log == []


def test_namespace_with_an_upstream_is_404(program: Program, hubs: tuple[Hub, Hub]) -> None:
    hubs[0].reset_log()
    for sign in ("=", "%3D"):
        namespace = f"quay.io{sign}https://{named(hubs[0], 'localhost')}"
        assert program.client("mirror").request("GET", f"/v2/a/b/manifests/1?ns={namespace}").status == 404
    assert hubs[0].log == []


def test_any_registry_is_not_intercepted_at_the_proxy(program: Program, hubs: tuple[Hub, Hub]) -> None:
    """The certificate is the registry's own."""
    assert hubs[0].ca_file is not None
    context = ssl.create_default_context(cafile=str(hubs[0].ca_file))
    tunnel = program.tunnel(ONE, hubs[0].ports["registry"])
    with tunnel, context.wrap_socket(tunnel, server_hostname=ONE) as connection:
        assert connection.getpeercert()


@pytest.fixture(scope="module")
def intercepting(hubs: tuple[Hub, Hub]) -> Iterator[Program]:
    with running(hubs, "*.example.org:*") as started:
        yield started


def at_proxy(program: Program, hub: Hub, path: str, host: str = ONE, **headers: str) -> Answer:
    return program.client("proxy").request("GET", path, headers, host=host, port=hub.ports["registry"])


def test_proxy_answers_for_registries_below_a_domain(intercepting: Program, hubs: tuple[Hub, Hub]) -> None:
    hub, repo = hubs[0], "team/below"
    image = hub.image(repo, "1", [LAYER])
    for _ in range(2):
        assert at_proxy(intercepting, hub, f"/v2/{repo}/manifests/1", **ACCEPT).body == image.manifest
        assert at_proxy(intercepting, hub, f"/v2/{repo}/blobs/{image.layers[0]}").body == LAYER
    assert hub.count(kind="manifest", repo=repo) == 1


def test_proxy_passes_on_what_is_not_below_v2(intercepting: Program, hubs: tuple[Hub, Hub]) -> None:
    hubs[0].reset_log()
    answer = at_proxy(intercepting, hubs[0], "/login")
    assert [record.path for record in hubs[0].log] == ["/login"]
    assert "cache-status" not in answer.headers


@pytest.mark.parametrize("host", [LOOPBACK, LINK])
@pytest.mark.parametrize("path", ["/v2/a/b/manifests/1", "/v2/a/b/tags/list", "/login"])
def test_proxy_reaches_no_local_address_below_a_domain(
    intercepting: Program, hubs: tuple[Hub, Hub], host: str, path: str
) -> None:
    hubs[0].reset_log()
    assert at_proxy(intercepting, hubs[0], path, host).status in (403, 502)
    assert hubs[0].log == []


def test_ca_is_constrained_to_the_domain_and_the_start_logs_it(intercepting: Program) -> None:
    intercepting.wait_for_log("can sign for docker.com, docker.io, example.org")


def test_mirror_of_a_domain_serves_no_other_registry(intercepting: Program, hubs: tuple[Hub, Hub]) -> None:
    hubs[1].reset_log()
    data = head("GET", f"/v2/a/b/manifests/1?ns={named(hubs[1], TWO)}", {"Host": "x", "Connection": "close"})
    with socket.create_connection(("127.0.0.1", intercepting.mirror), TIMEOUT) as connection:
        connection.sendall(data)
        assert Exchange(connection, "GET").finish().failure == (404, "MANIFEST_UNKNOWN")
    assert hubs[1].log == []
