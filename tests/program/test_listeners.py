"""What the two listeners answer before a pull (pings, tokens, challenges), and what they pass on uncached."""

import http.server
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.http_client import TIMEOUT, Exchange, head, wait_until
from support.program import (
    ACCEPT,
    HUB_HOST,
    LISTENERS,
    TOKEN_HOST,
    Program,
    RegistryClient,
    program_fixtures,
    proxy_client_fixture,
    running_program,
)
from support.standin import random_bytes
from support.standin.tls import make

program, client = program_fixtures(hubcache_tag_ttl="600", hubcache_tunnel=["*", "localhost", "127.0.0.1"])
proxy_client = proxy_client_fixture()

REALM = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'


# -- ping and tokens


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_ping_is_answered_without_the_upstream(client: RegistryClient, path: str) -> None:
    answer = client.request("GET", path)
    if client.is_proxy:
        assert answer.failure == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == REALM
    else:
        assert (answer.status, answer.body) == (200, b"{}")
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
    assert client.hub.count() == 0


def test_head_ping_has_the_content_length_of_the_get(client: RegistryClient) -> None:
    head_answer, get_answer = client.request("HEAD", "/v2/"), client.request("GET", "/v2/")
    assert (head_answer.status, head_answer.body) == (get_answer.status, b"")
    assert head_answer.headers["content-length"] == get_answer.headers["content-length"] == str(len(get_answer.body))


def test_ping_with_a_token_succeeds(client: RegistryClient) -> None:
    assert client.request("GET", "/v2/", {"Authorization": "Bearer anything"}).status == 200
    assert client.hub.count() == 0


def test_anonymous_token_is_local_and_never_sent_upstream(proxy_client: RegistryClient) -> None:
    hub, repo = proxy_client.hub, proxy_client.repo
    image = hub.image(repo, "latest")
    token = proxy_client.token(f"repository:{repo}:pull")
    assert hub.count() == 0
    headers = {"Authorization": f"Bearer {token}"}
    assert proxy_client.manifest("latest", headers).body == image.manifest
    assert proxy_client.blob(image.layers[0], headers).body == b"layer"
    assert proxy_client.request("GET", f"/v2/{repo}/tags/list", headers).status == 200
    assert proxy_client.request("GET", "/v2/_catalog", headers).status in (401, 404)
    assert hub.count() > 3
    assert [record for record in hub.log if token in str(record.headers)] == []


def test_anonymous_token_has_all_fields_that_clients_read(proxy_client: RegistryClient) -> None:
    answer = proxy_client.request("GET", "/token?service=registry.docker.io", host=TOKEN_HOST)
    document = json.loads(answer.body)
    assert document["token"] == document["access_token"]
    assert document["expires_in"] >= 60
    assert document["issued_at"].endswith("Z")
    assert answer.headers["cache-control"] == "no-store"


def test_warm_anonymous_pull_sends_no_request_upstream(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    pulls: list[Callable[[], bytes]] = [
        lambda: client.manifest("latest").body,
        lambda: client.blob(image.layers[0]).body,
    ]
    cold = [pull() for pull in pulls]
    client.wait_until_stored()
    client.hub.reset_log()
    assert [pull() for pull in pulls] == cold == [image.manifest, b"layer"]
    assert client.hub.count() == 0


# -- other hosts


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """The port of a TLS server that answers "hello", and a context that trusts its certificate."""
    ca_file, context = make(tmp_path, ["localhost"])

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], ssl.create_default_context(cafile=str(ca_file))
        server.shutdown()
        thread.join()


def test_connect_to_another_host_is_a_raw_tunnel_with_its_own_certificate(
    proxy_client: RegistryClient, other_server: tuple[int, ssl.SSLContext]
) -> None:
    port, trust = other_server
    with (
        proxy_client.program.tunnel("localhost", port) as tunnel,
        trust.wrap_socket(tunnel, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.endswith(b"hello")


def test_connect_to_another_host_needs_no_tls(proxy_client: RegistryClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tunnel = proxy_client.program.tunnel("localhost", server.getsockname()[1])
        tunnel.sendall(b"anything \0\xff")
        connection, _ = server.accept()
        with tunnel, connection:
            assert connection.recv(100) == b"anything \0\xff"
            connection.sendall(b"at all")
            assert tunnel.recv(100) == b"at all"


def test_plain_http_through_the_proxy_is_streamed(proxy_client: RegistryClient) -> None:
    """The first half arrives before the server has sent the second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", proxy_client.program.proxy), TIMEOUT)
        client.sendall(head("GET", f"http://localhost:{port}/file", {"Host": f"localhost:{port}"}))
        connection, _ = server.accept()
        with client, connection:
            assert b"GET /file HTTP/1.1\r\n" in connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + b"1" * 10)
            exchange = Exchange(client, "GET")
            assert exchange.read(10) == b"1" * 10
            connection.sendall(b"2" * 10)
            assert exchange.read(10) == b"2" * 10


def test_plain_http_request_for_a_stored_manifest_is_answered_by_the_server(proxy_client: RegistryClient) -> None:
    """A server with the `Host` of the registry, but without TLS, is not the registry whose content is stored."""
    hub, repo = proxy_client.hub, proxy_client.repo
    image = hub.image(repo, "latest")
    assert proxy_client.manifest("latest").body == image.manifest
    hub.reset_log()
    target = f"http://localhost:{hub.ports['registry']}/v2/{repo}/manifests/{image.digest}"
    with socket.create_connection(("127.0.0.1", proxy_client.program.proxy), TIMEOUT) as connection:
        connection.sendall(head("GET", target, {"Host": HUB_HOST, "Connection": "close"}))
        answer = Exchange(connection, "GET").finish()
    assert answer.status == 401
    assert f'realm="{hub.realm}"' in answer.headers["www-authenticate"]
    assert hub.count(kind="manifest") == 1


def test_clients_are_offered_http_1_only(proxy_client: RegistryClient) -> None:
    trust = proxy_client.program.ssl_context()
    trust.set_alpn_protocols(["h2", "http/1.1"])
    with (
        proxy_client.program.tunnel(HUB_HOST, 443) as tunnel,
        trust.wrap_socket(tunnel, server_hostname=HUB_HOST) as connection,
    ):
        assert connection.selected_alpn_protocol() == "http/1.1"


def test_mirror_opens_no_udp_socket_for_http_3(program: Program) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", program.mirror))


def test_connect_is_accepted_while_the_upstream_is_down(proxy_client: RegistryClient) -> None:
    proxy_client.hub.stop()
    assert proxy_client.request("GET", "/v2/").status == 401


def test_connection_is_kept_for_more_requests(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest", [random_bytes(300_000)])
    with client.connect() as connection:
        for _ in range(2):
            for path, body in (
                (f"/v2/{client.repo}/manifests/{image.digest}", image.manifest),
                (f"/v2/{client.repo}/blobs/{image.layers[0]}", random_bytes(300_000)),
                (f"/v2/{client.repo}/manifests/none", None),
            ):
                connection.sendall(head("GET", path, {"Host": HUB_HOST}))
                answer = Exchange(connection, "GET").finish()
                assert (answer.status, answer.body) == (200, body) if body else answer.status == 404


@pytest.mark.parametrize("what", ["manifest", "blob"])
def test_connection_is_closed_when_the_client_requests_it(client: RegistryClient, what: str) -> None:
    """Otherwise a client that reads to the end of the connection never returns."""
    image = client.hub.image(client.repo, "latest", [b"layer"])
    path = f"manifests/{image.digest}" if what == "manifest" else f"blobs/{image.layers[0]}"
    fields = {"Host": HUB_HOST, "Connection": "close"}
    for _ in range(2):
        assert client.send_raw(head("GET", f"/v2/{client.repo}/{path}", fields)).status == 200


# -- namespaces


@pytest.mark.parametrize("namespace", ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"])
def test_mirror_serves_the_namespace_of_the_hub(program: Program, namespace: str) -> None:
    program.reset()
    mirror = program.client("mirror")
    image = program.hub.image(mirror.repo, "latest")
    answer = mirror.request("GET", f"/v2/{mirror.repo}/manifests/latest?ns={namespace}", ACCEPT)
    assert (answer.status, answer.body) == (200, image.manifest)
    assert answer.headers["oci-namespace"] == "docker.io"


def test_all_host_names_of_the_hub_share_the_store(proxy_client: RegistryClient) -> None:
    """crane, ko, kaniko and cosign use index.docker.io, in the CONNECT, in TLS and in `Host`."""
    image = proxy_client.hub.image(proxy_client.repo, "latest", [random_bytes(50_000, proxy_client.repo)])
    paths = [f"manifests/{image.tag}", f"manifests/{image.digest}", f"blobs/{image.config}", f"blobs/{image.layers[0]}"]
    for host in (HUB_HOST, "index.docker.io", "INDEX.docker.io"):
        for path in paths:
            answer = proxy_client.request("GET", f"/v2/{proxy_client.repo}/{path}", ACCEPT, host=host)
            assert answer.status == 200
        proxy_client.wait_until_stored()
        assert proxy_client.hub.count(kind="manifest") == 1
        assert proxy_client.hub.count(kind="cdn") == 2
    assert proxy_client.request("GET", "/v2/", host="index.docker.io").headers["www-authenticate"] == REALM


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "path", ["/", "/v1/search?q=a", "/token?scope=x", "/metrics", "/v20/", "/v2/x", "/v2/library/app"]
)
def test_mirror_serves_the_registry_api_alone(program: Program, method: str, path: str) -> None:
    program.reset()
    answer = program.client("mirror").request(method, path)
    assert answer.status == 404
    if method != "HEAD":
        assert answer.failure == (404, "NAME_UNKNOWN")
    assert program.hub.count() == 0


def test_mirror_serves_the_namespace_in_a_header(program: Program) -> None:
    """stargz sends `OCI-Namespace` (distribution spec, "Registry Proxying")."""
    program.reset()
    mirror = program.client("mirror")
    image = program.hub.image(mirror.repo, "latest")
    path = f"/v2/{mirror.repo}/manifests/latest"
    answer = mirror.request("GET", path, ACCEPT | {"OCI-Namespace": "docker.io"})
    assert (answer.status, answer.body) == (200, image.manifest)
    assert mirror.request("GET", path, {"OCI-Namespace": "ghcr.io"}).failure == (404, "MANIFEST_UNKNOWN")
    assert mirror.request("GET", f"{path}?ns=docker.io", {"OCI-Namespace": "ghcr.io"}).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_mirror_answers_404_for_other_namespaces(program: Program, method: str) -> None:
    program.reset()
    mirror = program.client("mirror")
    program.hub.image(mirror.repo, "latest")
    answer = mirror.request(method, f"/v2/{mirror.repo}/manifests/latest?ns=ghcr.io")
    assert answer.status == 404
    if method != "HEAD":
        assert answer.failure == (404, "MANIFEST_UNKNOWN")
    assert program.hub.count() == 0


@pytest.mark.parametrize("name", LISTENERS)
def test_requests_are_counted_by_kind_result_and_listener(name: str) -> None:
    """The process is this test's own, because workers report their numbers up to a second late."""
    with running_program() as program:
        client = program.client(name)
        image = program.hub.image(client.repo, "latest", [b"layer"])
        for _ in range(2):
            client.manifest("latest")
            client.blob(image.layers[0])
            client.wait_until_stored()
        client.request("HEAD", "/v2/")
        expected = [("manifest", "miss"), ("manifest", "hit"), ("blob", "miss"), ("blob", "hit"), ("ping", "local")]

        def counted(kind: str, result: str) -> float:
            return program.metric("hubcache_requests_total", kind=kind, result=result, door=name)

        wait_until(lambda: [counted(*one) for one in expected] == [1, 1, 1, 1, 1])
        assert program.metric("hubcache_requests_total") == 5
