"""Where something is mitmproxy's to do it goes on with what was said so far, and clients do not notice."""

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
from support.tls_client import Client, Witness, ask, reply, warm, witness_fixture

LARGE = 3_000_000
ALICE = "Basic " + base64.b64encode(b"alice:secret").decode()

program, client = program_fixtures(
    warm, hubcache_workers="1", hubcache_tag_ttl="600", hubcache_tunnel=["*", "localhost"]
)
witness = witness_fixture()


@pytest.fixture
def proxy_client(program: Program) -> Iterator[RegistryClient]:
    """The proxy door, with a repository of alice's."""
    program.reset()
    program.hub.user("alice", "secret")
    client = program.client("proxy")
    client.repo = client.repo.replace("library/", "alice/")
    yield client
    program.assert_no_errors()


def authorization(client: RegistryClient) -> dict[str, str]:
    """What alice's client sends with each request."""
    return {"Authorization": f"Bearer {client.token(f'repository:{client.repo}:pull,push', ALICE)}"}


def bypassed(client: RegistryClient) -> float:
    """How many requests were passed on."""
    return client.program.metric("hubcache_requests_total", result="bypass", door="proxy")


# -- requests that are passed on, on a connection on which others were answered


@pytest.mark.parametrize("how", ["in one write", "in two writes", "in small records"])
@pytest.mark.parametrize("size", [10, 70_000, LARGE])
def test_upload_goes_through_in_the_middle_of_a_connection(proxy_client: RegistryClient, size: int, how: str) -> None:
    client, own, data = proxy_client, authorization(proxy_client), random_bytes(size, proxy_client.repo)
    image = client.hub.image(client.repo, "1", [b"layer"])
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    begun = client.request("POST", f"/v2/{client.repo}/blobs/uploads/", own | {"Content-Length": "0"})
    upload = head(
        "PUT", f"{begun.headers['location']}?digest={digest}", {"Host": HUB_HOST, "Content-Length": str(size), **own}
    )
    witness = Witness(client.program)
    with Client(client) as connection:
        connection.send(ask(client, "manifests/1"))
        assert reply(connection.answers) == (200, image.manifest)
        assert witness.taken_over == 0
        if how == "in one write":
            connection.send(upload + data)
        elif how == "in two writes":
            connection.send(upload)
            wait_until(lambda: witness.taken_over == 1)
            connection.send(data)
        else:
            connection.send(upload[:30], upload[30:], *(data[at : at + 999] for at in range(0, size, 999)))
        assert reply(connection.answers) == (201, b"")
        for _ in range(2):
            connection.send(ask(client, "manifests/1"))
            assert reply(connection.answers) == (200, image.manifest)
            connection.send(ask(client, f"blobs/{image.layers[0]}"))
            assert reply(connection.answers) == (200, b"layer")
        connection.send(ask(client, f"blobs/{digest}"))
        assert reply(connection.answers) == (200, data)
    assert witness.taken_over == 1
    assert {one.user for one in client.hub.requests(kind="upload")} == {"alice"}


@pytest.mark.parametrize("is_kept", [True, False])
def test_push_of_a_manifest_counts_as_one_bypass(proxy_client: RegistryClient, witness: Witness, is_kept: bool) -> None:
    client, own = proxy_client, authorization(proxy_client)
    image = client.hub.image(client.repo, "1", [b"layer"])
    push = head(
        "PUT",
        f"/v2/{client.repo}/manifests/2",
        {"Host": HUB_HOST, "Content-Type": OCI_MANIFEST, "Content-Length": str(len(image.manifest)), **own},
    )
    before = bypassed(client)
    with Client(client) as connection:
        if is_kept:
            connection.send(ask(client, "manifests/1"))
            assert reply(connection.answers) == (200, image.manifest)
        connection.send(push + image.manifest)
        assert reply(connection.answers) == (201, b"")
        connection.send(ask(client, "manifests/2"))
        assert reply(connection.answers) == (200, image.manifest)
    assert witness.taken_over == 1
    assert (bypassed(client) - before, client.hub.count(method="PUT")) == (1, 1)


@pytest.mark.parametrize(("what", "status"), [("manifests/1", 200), ("blobs", 307), ("tags/list", 200)])
def test_request_that_needs_credentials_is_decided_once_and_sent_once(
    proxy_client: RegistryClient, witness: Witness, what: str, status: int
) -> None:
    client, public = proxy_client, f"/v2/{proxy_client.repo}-public/manifests/1"
    image = client.hub.image(client.repo, "1")
    manifest = client.hub.image(f"{client.repo}-public", "1").manifest
    client.hub.private(client.repo, {"alice": "secret"})
    own, before = authorization(client), bypassed(client)
    path = f"blobs/{image.layers[0]}" if what == "blobs" else what
    with Client(client) as connection:
        connection.send(head("GET", public, {"Host": HUB_HOST, **own}))
        assert reply(connection.answers) == (200, manifest)
        assert witness.taken_over == 0
        for number in (1, 2):  # the first as it is handed over
            connection.send(ask(client, path, **own))
            assert reply(connection.answers)[0] == status
            assert (witness.taken_over, bypassed(client) - before) == (1, number)
            assert client.hub.count(user="alice", repo=client.repo) == number
        connection.send(head("GET", public, {"Host": HUB_HOST, **own}))
        assert reply(connection.answers) == (200, manifest)
    assert own["Authorization"] not in client.program.log


def test_client_that_ends_tls_after_a_request_that_is_passed_on_is_left(proxy_client: RegistryClient) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    proxy_client.hub.private(proxy_client.repo, {"alice": "secret"})
    own = authorization(proxy_client)
    with Client(proxy_client) as connection:
        connection.way.sendall(
            connection.sealed(ask(proxy_client, f"manifests/{image.digest}", **own)) + connection.goodbye()
        )
        assert connection.answers.read() == b""


def test_requests_that_are_sent_at_once_keep_their_order(proxy_client: RegistryClient, witness: Witness) -> None:
    """Two are answered, one is passed on, one is asked behind it."""
    client, own = proxy_client, authorization(proxy_client)
    data = random_bytes(LARGE, client.repo)
    image = client.hub.image(client.repo, "1", [data])
    push = {"Host": HUB_HOST, "Content-Type": OCI_MANIFEST, "Content-Length": str(len(image.manifest)), **own}
    with Client(client) as connection:
        connection.send(
            ask(client, f"blobs/{image.layers[0]}")
            + ask(client, "manifests/2")
            + head("PUT", f"/v2/{client.repo}/manifests/2", push)
            + image.manifest
            + ask(client, "manifests/2")
        )
        assert reply(connection.answers) == (200, data)
        assert reply(connection.answers)[0] == 404
        assert reply(connection.answers) == (201, b"")
        assert reply(connection.answers) == (200, image.manifest)
    assert witness.taken_over == 1


def test_upload_goes_through_with_tls_1_2(proxy_client: RegistryClient, witness: Witness) -> None:
    client, own, data = proxy_client, authorization(proxy_client), random_bytes(LARGE, proxy_client.repo)
    image = client.hub.image(client.repo, "1")
    begun = client.request("POST", f"/v2/{client.repo}/blobs/uploads/", own | {"Content-Length": "0"})
    upload = head("PATCH", begun.headers["location"], {"Host": HUB_HOST, "Content-Length": str(LARGE), **own})
    trust, before = client.program.ssl_context(), witness.taken_over
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    with trust.wrap_socket(client.program.tunnel(HUB_HOST, 443), server_hostname=HUB_HOST) as connection:
        for data_sent, expected in ((b"", 200), (upload + data, 202), (b"", 200)):
            connection.sendall(data_sent or ask(client, "manifests/1"))
            assert reply(connection.makefile("rb")) == (expected, image.manifest if expected == 200 else b"")
    assert witness.taken_over - before == 1


# -- requests that are not plain


@pytest.mark.parametrize("at", [1, 20, -1])
def test_request_that_comes_in_pieces_is_answered(client: RegistryClient, witness: Witness, at: int) -> None:
    image = client.hub.image(client.repo, "1")
    asked = ask(client, "manifests/1")
    with Client(client) as connection:
        connection.send(asked + asked[:at])
        assert reply(connection.answers) == (200, image.manifest)
        connection.send(asked[at:])
        assert reply(connection.answers) == (200, image.manifest)
        connection.send(asked)
        assert reply(connection.answers) == (200, image.manifest)
    assert witness.taken_over == 0


def test_request_in_many_records_is_answered(proxy_client: RegistryClient) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    asked = ask(proxy_client, "manifests/1")
    with Client(proxy_client) as connection:
        connection.send(*(asked[at : at + 1] for at in range(len(asked))))
        assert reply(connection.answers) == (200, image.manifest)
        connection.send(asked)
        assert reply(connection.answers) == (200, image.manifest)


def test_records_that_arrive_byte_by_byte_are_read(proxy_client: RegistryClient, witness: Witness) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    with Client(proxy_client) as connection:
        connection.way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in connection.sealed(ask(proxy_client, "manifests/1")):
            connection.way.sendall(bytes([byte]))
        assert reply(connection.answers) == (200, image.manifest)
    assert witness.taken_over == 0


@pytest.mark.parametrize(
    "fields",
    [{"Expect": "100-continue"}, {"Content-Length": "0"}, {"TE": "trailers"}, {"X": "x" * 20_000}],
    ids=lambda fields: next(iter(fields)),
)
def test_unusual_request_is_answered_on_a_kept_connection(
    client: RegistryClient, witness: Witness, fields: dict[str, str]
) -> None:
    image = client.hub.image(client.repo, "1")
    with Client(client) as connection:
        for more in ({}, fields, {}):
            connection.send(ask(client, "manifests/1", **more))
            while (answer := reply(connection.answers))[0] == 100:
                pass
            assert answer == (200, image.manifest)
    assert witness.taken_over == 1


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"GET / HTTP/1.1\n\n", b"\r\n\r\n\r\n", b"\0" * 70_000])
def test_no_request_at_all_gets_no_content(client: RegistryClient, data: bytes) -> None:
    image = client.hub.image(client.repo, "1")
    with Client(client) as connection:
        connection.send(ask(client, "manifests/1"))
        assert reply(connection.answers) == (200, image.manifest)
        connection.send(data)
        connection.end()
        assert b"HTTP/1.1 200" not in connection.answers.read()


def test_mirror_tells_that_it_does_not_know_a_namespace(program: Program, witness: Witness) -> None:
    program.reset()
    client = program.client("mirror")
    image = client.hub.image(client.repo, "1")
    with Client(client) as connection:
        for namespace, expected in (("docker.io", 200), ("ghcr.io", 404), ("docker.io", 200)):
            connection.send(ask(client, f"manifests/1?ns={namespace}"))
            status, body = reply(connection.answers)
            assert (status, body == image.manifest) == (expected, expected == 200)
    assert witness.taken_over == 1
    program.assert_no_errors()


# -- tunnels and handshakes


def test_tunnel_to_a_host_that_is_not_ours_is_raw(proxy_client: RegistryClient, witness: Witness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tunnel = proxy_client.program.tunnel("localhost", server.getsockname()[1])
        tunnel.sendall(b"anything \0\xff")
        connection, _ = server.accept()
        with tunnel, connection:
            assert connection.recv(100) == b"anything \0\xff"
            connection.sendall(b"at all")
            assert tunnel.recv(100) == b"at all"
    assert witness.taken_over == 1


def test_client_need_not_wait_before_its_hello(proxy_client: RegistryClient, witness: Witness) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    connect = head("CONNECT", f"{HUB_HOST}:443", {"Host": f"{HUB_HOST}:443"})
    with socket.create_connection(("127.0.0.1", proxy_client.program.proxy), TIMEOUT) as way:
        connection = Client(proxy_client, way=way)
        way.sendall(connect + connection.hello())
        connection.shake(after_connect(way))
        connection.send(ask(proxy_client, "manifests/1"))
        assert reply(connection.answers) == (200, image.manifest)
    assert witness.taken_over == 0


def after_connect(way: socket.socket) -> bytes:
    """What came behind the answer to a CONNECT."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += way.recv(4096)
    return received.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_hello_may_come_in_small_pieces(proxy_client: RegistryClient, witness: Witness, size: int) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    with proxy_client.program.tunnel(HUB_HOST, 443) as way:
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Client(proxy_client, way=way)
        hello = connection.hello()
        for at in range(0, len(hello), size):
            way.sendall(hello[at : at + size])
        connection.shake()
        connection.send(ask(proxy_client, "manifests/1"))
        assert reply(connection.answers) == (200, image.manifest)
    assert witness.taken_over == 0


@pytest.mark.parametrize("name", [None, "REGISTRY-1.docker.io", "auth.docker.io"])
def test_client_that_asks_for_another_name_gets_its_tls_from_mitmproxy(
    proxy_client: RegistryClient, witness: Witness, name: str | None
) -> None:
    image = proxy_client.hub.image(proxy_client.repo, "1")
    with proxy_client.program.tunnel(HUB_HOST, 443) as way:
        connection = Client(proxy_client, way=way, name=name)
        way.sendall(connection.hello())
        connection.shake()
        connection.send(ask(proxy_client, "manifests/1"))
        assert reply(connection.answers) == (200, image.manifest)
    assert witness.taken_over == 1


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
def test_what_is_no_tls_in_a_tunnel_gets_no_content_and_an_end(proxy_client: RegistryClient, data: bytes) -> None:
    with proxy_client.program.tunnel(HUB_HOST, 443) as tunnel:
        tunnel.sendall(data)
        tunnel.shutdown(socket.SHUT_WR)
        received = b""
        while piece := tunnel.recv(4096):
            received += piece
    assert b"200" not in received
    assert proxy_client.request("GET", "/v2/").status == 401
    assert proxy_client.hub.count() == 0
