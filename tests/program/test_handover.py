"""Direct connections are handed over to mitmproxy at any point, and clients do not notice."""

import base64
import hashlib
import socket
import ssl
from collections.abc import Iterator

import pytest
from support.http_client import TIMEOUT, head, wait_until
from support.program import HUB_HOST, Program, RegistryClient, program_fixtures
from support.standin import random_bytes
from support.standin.media import OCI_MANIFEST
from support.tls_client import NewLog, RawClient, make_certificates, new_log_fixture, read_answer, request_head

LARGE = 3_000_000
ALICE = "Basic " + base64.b64encode(b"alice:secret").decode()

program, client = program_fixtures(
    make_certificates, hubcache_workers="1", hubcache_tag_ttl="600", hubcache_tunnel=["*", "localhost"]
)
new_log = new_log_fixture()


@pytest.fixture
def proxy_client(program: Program) -> Iterator[RegistryClient]:
    """A client of the proxy, with a repository of alice's."""
    program.reset()
    program.hub.user("alice", "secret")
    client = program.client("proxy")
    client.repo = client.repo.replace("library/", "alice/")
    yield client
    program.assert_no_errors()


def authorization(client: RegistryClient) -> dict[str, str]:
    """Return the header that alice's client sends with each request."""
    return {"Authorization": f"Bearer {client.token(f'repository:{client.repo}:pull,push', ALICE)}"}


def bypassed(client: RegistryClient) -> float:
    """Return the number of requests that were passed on."""
    return client.program.metric("hubcache_requests_total", result="bypass", door="proxy")


# -- requests that are passed on, after others were answered on the same connection


@pytest.mark.parametrize("how", ["in one write", "in two writes", "in small records"])
@pytest.mark.parametrize("size", [10, 70_000, LARGE])
def test_upload_succeeds_on_a_connection_with_other_requests(proxy_client: RegistryClient, size: int, how: str) -> None:
    client, own, data = proxy_client, authorization(proxy_client), random_bytes(size, proxy_client.repo)
    image = client.hub.image(client.repo, "1", [b"layer"])
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    begun = client.request("POST", f"/v2/{client.repo}/blobs/uploads/", own | {"Content-Length": "0"})
    upload = head(
        "PUT", f"{begun.headers['location']}?digest={digest}", {"Host": HUB_HOST, "Content-Length": str(size), **own}
    )
    new_log = NewLog(client.program)
    with RawClient(client) as connection:
        connection.send(request_head(client, "manifests/1"))
        assert read_answer(connection.stream) == (200, image.manifest)
        assert new_log.mitmproxy_clients == 0
        if how == "in one write":
            connection.send(upload + data)
        elif how == "in two writes":
            connection.send(upload)
            wait_until(lambda: new_log.mitmproxy_clients == 1)
            connection.send(data)
        else:
            connection.send(upload[:30], upload[30:], *(data[at : at + 999] for at in range(0, size, 999)))
        assert read_answer(connection.stream) == (201, b"")
        for _ in range(2):
            connection.send(request_head(client, "manifests/1"))
            assert read_answer(connection.stream) == (200, image.manifest)
            connection.send(request_head(client, f"blobs/{image.layers[0]}"))
            assert read_answer(connection.stream) == (200, b"layer")
        connection.send(request_head(client, f"blobs/{digest}"))
        assert read_answer(connection.stream) == (200, data)
    assert new_log.mitmproxy_clients == 1
    assert {one.user for one in client.hub.requests(kind="upload")} == {"alice"}


@pytest.mark.parametrize("is_kept", [True, False])
def test_push_of_a_manifest_counts_as_one_bypass(proxy_client: RegistryClient, new_log: NewLog, is_kept: bool) -> None:
    client, own = proxy_client, authorization(proxy_client)
    image = client.hub.image(client.repo, "1", [b"layer"])
    push = head(
        "PUT",
        f"/v2/{client.repo}/manifests/2",
        {"Host": HUB_HOST, "Content-Type": OCI_MANIFEST, "Content-Length": str(len(image.manifest)), **own},
    )
    before = bypassed(client)
    with RawClient(client) as connection:
        if is_kept:
            connection.send(request_head(client, "manifests/1"))
            assert read_answer(connection.stream) == (200, image.manifest)
        connection.send(push + image.manifest)
        assert read_answer(connection.stream) == (201, b"")
        connection.send(request_head(client, "manifests/2"))
        assert read_answer(connection.stream) == (200, image.manifest)
    assert new_log.mitmproxy_clients == 1
    assert (bypassed(client) - before, client.hub.count(method="PUT")) == (1, 1)


@pytest.mark.parametrize(("what", "status"), [("manifests/1", 200), ("blobs", 307), ("tags/list", 200)])
def test_request_that_needs_credentials_is_sent_upstream_once(
    proxy_client: RegistryClient, new_log: NewLog, what: str, status: int
) -> None:
    client, public = proxy_client, f"/v2/{proxy_client.repo}-public/manifests/1"
    image = client.hub.image(client.repo, "1")
    manifest = client.hub.image(f"{client.repo}-public", "1").manifest
    client.hub.private(client.repo, {"alice": "secret"})
    own, before = authorization(client), bypassed(client)
    path = f"blobs/{image.layers[0]}" if what == "blobs" else what
    with RawClient(client) as connection:
        connection.send(head("GET", public, {"Host": HUB_HOST, **own}))
        assert read_answer(connection.stream) == (200, manifest)
        assert new_log.mitmproxy_clients == 0
        for number in (1, 2):  # the first request causes the handover
            connection.send(request_head(client, path, **own))
            assert read_answer(connection.stream)[0] == status
            assert (new_log.mitmproxy_clients, bypassed(client) - before) == (1, number)
            assert client.hub.count(user="alice", repo=client.repo) == number
        connection.send(head("GET", public, {"Host": HUB_HOST, **own}))
        assert read_answer(connection.stream) == (200, manifest)
    assert own["Authorization"] not in client.program.log


def test_connection_closes_when_tls_ends_before_a_request_is_passed_on(proxy_client: RegistryClient) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    proxy_client.hub.private(proxy_client.repo, {"alice": "secret"})
    own = authorization(proxy_client)
    with RawClient(proxy_client) as connection:
        connection.socket.sendall(
            connection.encrypt(request_head(proxy_client, f"manifests/{image.digest}", **own))
            + connection.close_notify()
        )
        assert connection.stream.read() == b""


def test_pipelined_requests_keep_their_order(proxy_client: RegistryClient, new_log: NewLog) -> None:
    """Of four requests, the third is passed on and the others are answered by the cache."""
    client, own = proxy_client, authorization(proxy_client)
    data = random_bytes(LARGE, client.repo)
    image = client.hub.image(client.repo, "1", [data])
    push = {"Host": HUB_HOST, "Content-Type": OCI_MANIFEST, "Content-Length": str(len(image.manifest)), **own}
    with RawClient(client) as connection:
        connection.send(
            request_head(client, f"blobs/{image.layers[0]}")
            + request_head(client, "manifests/2")
            + head("PUT", f"/v2/{client.repo}/manifests/2", push)
            + image.manifest
            + request_head(client, "manifests/2")
        )
        assert read_answer(connection.stream) == (200, data)
        assert read_answer(connection.stream)[0] == 404
        assert read_answer(connection.stream) == (201, b"")
        assert read_answer(connection.stream) == (200, image.manifest)
    assert new_log.mitmproxy_clients == 1


def test_upload_succeeds_with_tls_1_2(proxy_client: RegistryClient, new_log: NewLog) -> None:
    client, own, data = proxy_client, authorization(proxy_client), random_bytes(LARGE, proxy_client.repo)
    image = client.hub.image(client.repo, "1")
    begun = client.request("POST", f"/v2/{client.repo}/blobs/uploads/", own | {"Content-Length": "0"})
    upload = head("PATCH", begun.headers["location"], {"Host": HUB_HOST, "Content-Length": str(LARGE), **own})
    trust, before = client.program.ssl_context(), new_log.mitmproxy_clients
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    with trust.wrap_socket(client.program.tunnel(HUB_HOST, 443), server_hostname=HUB_HOST) as connection:
        for data_sent, expected in ((b"", 200), (upload + data, 202), (b"", 200)):
            connection.sendall(data_sent or request_head(client, "manifests/1"))
            assert read_answer(connection.makefile("rb")) == (expected, image.manifest if expected == 200 else b"")
    assert new_log.mitmproxy_clients - before == 1


# -- unusual requests


@pytest.mark.parametrize("at", [1, 20, -1])
def test_request_in_pieces_is_answered(client: RegistryClient, new_log: NewLog, at: int) -> None:
    image = client.hub.image(client.repo, "1")
    asked = request_head(client, "manifests/1")
    with RawClient(client) as connection:
        connection.send(asked + asked[:at])
        assert read_answer(connection.stream) == (200, image.manifest)
        connection.send(asked[at:])
        assert read_answer(connection.stream) == (200, image.manifest)
        connection.send(asked)
        assert read_answer(connection.stream) == (200, image.manifest)
    assert new_log.mitmproxy_clients == 0


def test_request_in_many_records_is_answered(proxy_client: RegistryClient) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    asked = request_head(proxy_client, "manifests/1")
    with RawClient(proxy_client) as connection:
        connection.send(*(asked[at : at + 1] for at in range(len(asked))))
        assert read_answer(connection.stream) == (200, image.manifest)
        connection.send(asked)
        assert read_answer(connection.stream) == (200, image.manifest)


def test_records_that_arrive_byte_by_byte_are_read(proxy_client: RegistryClient, new_log: NewLog) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    with RawClient(proxy_client) as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in connection.encrypt(request_head(proxy_client, "manifests/1")):
            connection.socket.sendall(bytes([byte]))
        assert read_answer(connection.stream) == (200, image.manifest)
    assert new_log.mitmproxy_clients == 0


@pytest.mark.parametrize(
    "fields",
    [{"Expect": "100-continue"}, {"Content-Length": "0"}, {"TE": "trailers"}, {"X": "x" * 20_000}],
    ids=lambda fields: next(iter(fields)),
)
def test_unusual_request_is_answered_on_a_kept_connection(
    client: RegistryClient, new_log: NewLog, fields: dict[str, str]
) -> None:
    image = client.hub.image(client.repo, "1")
    with RawClient(client) as connection:
        for more in ({}, fields, {}):
            connection.send(request_head(client, "manifests/1", **more))
            while (answer := read_answer(connection.stream))[0] == 100:
                pass
            assert answer == (200, image.manifest)
    assert new_log.mitmproxy_clients == 1


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"GET / HTTP/1.1\n\n", b"\r\n\r\n\r\n", b"\0" * 70_000])
def test_bytes_that_are_no_request_get_no_content(client: RegistryClient, data: bytes) -> None:
    image = client.hub.image(client.repo, "1")
    with RawClient(client) as connection:
        connection.send(request_head(client, "manifests/1"))
        assert read_answer(connection.stream) == (200, image.manifest)
        connection.send(data)
        connection.half_close()
        assert b"HTTP/1.1 200" not in connection.stream.read()


def test_unknown_namespace_at_the_mirror_is_404_on_a_kept_connection(program: Program, new_log: NewLog) -> None:
    program.reset()
    client = program.client("mirror")
    image = client.hub.image(client.repo, "1")
    with RawClient(client) as connection:
        for namespace, expected in (("docker.io", 200), ("ghcr.io", 404), ("docker.io", 200)):
            connection.send(request_head(client, f"manifests/1?ns={namespace}"))
            status, body = read_answer(connection.stream)
            assert (status, body == image.manifest) == (expected, expected == 200)
    assert new_log.mitmproxy_clients == 1
    program.assert_no_errors()


# -- tunnels and handshakes


def test_tunnel_to_another_host_is_not_decoded(proxy_client: RegistryClient, new_log: NewLog) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tunnel = proxy_client.program.tunnel("localhost", server.getsockname()[1])
        tunnel.sendall(b"anything \0\xff")
        connection, _ = server.accept()
        with tunnel, connection:
            assert connection.recv(100) == b"anything \0\xff"
            connection.sendall(b"at all")
            assert tunnel.recv(100) == b"at all"
    assert new_log.mitmproxy_clients == 1


def test_hello_may_follow_the_connect_at_once(proxy_client: RegistryClient, new_log: NewLog) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    connect = head("CONNECT", f"{HUB_HOST}:443", {"Host": f"{HUB_HOST}:443"})
    with socket.create_connection(("127.0.0.1", proxy_client.program.proxy), TIMEOUT) as raw_socket:
        connection = RawClient(proxy_client, connection=raw_socket)
        raw_socket.sendall(connect + connection.hello())
        connection.handshake(after_connect(raw_socket))
        connection.send(request_head(proxy_client, "manifests/1"))
        assert read_answer(connection.stream) == (200, image.manifest)
    assert new_log.mitmproxy_clients == 0


def after_connect(raw_socket: socket.socket) -> bytes:
    """Return the bytes that follow the answer to a CONNECT."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += raw_socket.recv(4096)
    return received.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_hello_may_be_sent_in_small_pieces(proxy_client: RegistryClient, new_log: NewLog, size: int) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    with proxy_client.program.tunnel(HUB_HOST, 443) as raw_socket:
        raw_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = RawClient(proxy_client, connection=raw_socket)
        hello = connection.hello()
        for at in range(0, len(hello), size):
            raw_socket.sendall(hello[at : at + size])
        connection.handshake()
        connection.send(request_head(proxy_client, "manifests/1"))
        assert read_answer(connection.stream) == (200, image.manifest)
    assert new_log.mitmproxy_clients == 0


@pytest.mark.parametrize("name", [None, "REGISTRY-1.docker.io", "auth.docker.io"])
def test_hello_for_another_name_is_handed_over(proxy_client: RegistryClient, new_log: NewLog, name: str | None) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    with proxy_client.program.tunnel(HUB_HOST, 443) as raw_socket:
        connection = RawClient(proxy_client, connection=raw_socket, name=name)
        raw_socket.sendall(connection.hello())
        connection.handshake()
        connection.send(request_head(proxy_client, "manifests/1"))
        assert read_answer(connection.stream) == (200, image.manifest)
    assert new_log.mitmproxy_clients == 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v2/ HTTP/1.1\r\n\r\n",
        b"\x80\x2e\x01\x00\x02",
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
        b"\x16\x03\x01\x00\x00\x00",
        b"\x16\x03\x01\x00\x16registry-1.docker.io!!",
    ],
    ids=["HTTP", "SSL 2", "too long", "empty", "a name alone"],
)
def test_tunnel_without_tls_gets_no_content_and_is_closed(proxy_client: RegistryClient, data: bytes) -> None:
    with proxy_client.program.tunnel(HUB_HOST, 443) as tunnel:
        tunnel.sendall(data)
        tunnel.shutdown(socket.SHUT_WR)
        received = b""
        while piece := tunnel.recv(4096):
            received += piece
    assert b"200" not in received
    assert proxy_client.request("GET", "/v2/").status == 401
    assert proxy_client.hub.count() == 0
