"""Where something is mitmproxy's to do it goes on with what was said so far, and clients do not notice."""

import base64
import hashlib
import socket
import ssl
from collections.abc import Iterator

import pytest
from support import program
from support.http_client import PATIENCE, head, wait_until
from support.program import HUB_HOST, Door, Rig
from support.standin import random_bytes
from support.standin.media import OCI_MANIFEST
from support.tls_client import Client, Witness, ask, reply, warm, witness_fixture

LARGE = 3_000_000
ALICE = "Basic " + base64.b64encode(b"alice:secret").decode()

rig, door = program.fixtures(warm, hubcache_workers="1", hubcache_tag_ttl="600", hubcache_tunnel=["*", "localhost"])
witness = witness_fixture()


@pytest.fixture
def proxy_door(rig: Rig) -> Iterator[Door]:
    """The proxy door, with a repository of alice's."""
    rig.refresh()
    rig.hub.user("alice", "secret")
    door = rig.door("proxy")
    door.repo = door.repo.replace("library/", "alice/")
    yield door
    rig.check()


def authorization(door: Door) -> dict[str, str]:
    """What alice's client sends with each request."""
    return {"Authorization": f"Bearer {door.token(f'repository:{door.repo}:pull,push', ALICE)}"}


def bypassed(door: Door) -> float:
    """How many requests were passed on."""
    return door.product.metric("hubcache_requests_total", result="bypass", door="proxy")


# -- requests that are passed on, on a connection on which others were answered


@pytest.mark.parametrize("how", ["in one write", "in two writes", "in small records"])
@pytest.mark.parametrize("size", [10, 70_000, LARGE])
def test_upload_goes_through_in_the_middle_of_a_connection(proxy_door: Door, size: int, how: str) -> None:
    door, own, data = proxy_door, authorization(proxy_door), random_bytes(size, proxy_door.repo)
    image = door.hub.image(door.repo, "1", [b"layer"])
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    begun = door.request("POST", f"/v2/{door.repo}/blobs/uploads/", own | {"Content-Length": "0"})
    upload = head(
        "PUT", f"{begun.headers['location']}?digest={digest}", {"Host": HUB_HOST, "Content-Length": str(size), **own}
    )
    witness = Witness(door.product)
    with Client(door) as client:
        client.send(ask(door, "manifests/1"))
        assert reply(client.answers) == (200, image.manifest)
        assert witness.taken_over == 0
        if how == "in one write":
            client.send(upload + data)
        elif how == "in two writes":
            client.send(upload)
            wait_until(lambda: witness.taken_over == 1)
            client.send(data)
        else:
            client.send(upload[:30], upload[30:], *(data[at : at + 999] for at in range(0, size, 999)))
        assert reply(client.answers) == (201, b"")
        for _ in range(2):
            client.send(ask(door, "manifests/1"))
            assert reply(client.answers) == (200, image.manifest)
            client.send(ask(door, f"blobs/{image.layers[0]}"))
            assert reply(client.answers) == (200, b"layer")
        client.send(ask(door, f"blobs/{digest}"))
        assert reply(client.answers) == (200, data)
    assert witness.taken_over == 1
    assert {one.user for one in door.hub.requests(kind="upload")} == {"alice"}


@pytest.mark.parametrize("is_kept", [True, False])
def test_push_of_a_manifest_counts_as_one_bypass(proxy_door: Door, witness: Witness, is_kept: bool) -> None:
    door, own = proxy_door, authorization(proxy_door)
    image = door.hub.image(door.repo, "1", [b"layer"])
    push = head(
        "PUT",
        f"/v2/{door.repo}/manifests/2",
        {"Host": HUB_HOST, "Content-Type": OCI_MANIFEST, "Content-Length": str(len(image.manifest)), **own},
    )
    before = bypassed(door)
    with Client(door) as client:
        if is_kept:
            client.send(ask(door, "manifests/1"))
            assert reply(client.answers) == (200, image.manifest)
        client.send(push + image.manifest)
        assert reply(client.answers) == (201, b"")
        client.send(ask(door, "manifests/2"))
        assert reply(client.answers) == (200, image.manifest)
    assert witness.taken_over == 1
    assert (bypassed(door) - before, door.hub.count(method="PUT")) == (1, 1)


@pytest.mark.parametrize(("what", "status"), [("manifests/1", 200), ("blobs", 307), ("tags/list", 200)])
def test_request_that_needs_credentials_is_decided_once_and_sent_once(
    proxy_door: Door, witness: Witness, what: str, status: int
) -> None:
    door, public = proxy_door, f"/v2/{proxy_door.repo}-public/manifests/1"
    image = door.hub.image(door.repo, "1")
    manifest = door.hub.image(f"{door.repo}-public", "1").manifest
    door.hub.private(door.repo, {"alice": "secret"})
    own, before = authorization(door), bypassed(door)
    path = f"blobs/{image.layers[0]}" if what == "blobs" else what
    with Client(door) as client:
        client.send(head("GET", public, {"Host": HUB_HOST, **own}))
        assert reply(client.answers) == (200, manifest)
        assert witness.taken_over == 0
        for number in (1, 2):  # the first as it is handed over
            client.send(ask(door, path, **own))
            assert reply(client.answers)[0] == status
            assert (witness.taken_over, bypassed(door) - before) == (1, number)
            assert door.hub.count(user="alice", repo=door.repo) == number
        client.send(head("GET", public, {"Host": HUB_HOST, **own}))
        assert reply(client.answers) == (200, manifest)
    assert own["Authorization"] not in door.product.log


def test_client_that_ends_tls_after_a_request_that_is_passed_on_is_left(proxy_door: Door) -> None:
    image = proxy_door.hub.image(proxy_door.repo, "1")
    proxy_door.hub.private(proxy_door.repo, {"alice": "secret"})
    own = authorization(proxy_door)
    with Client(proxy_door) as client:
        client.way.sendall(client.sealed(ask(proxy_door, f"manifests/{image.digest}", **own)) + client.goodbye())
        assert client.answers.read() == b""


def test_requests_that_are_sent_at_once_keep_their_order(proxy_door: Door, witness: Witness) -> None:
    """Two are answered, one is passed on, one is asked behind it."""
    door, own = proxy_door, authorization(proxy_door)
    data = random_bytes(LARGE, door.repo)
    image = door.hub.image(door.repo, "1", [data])
    push = {"Host": HUB_HOST, "Content-Type": OCI_MANIFEST, "Content-Length": str(len(image.manifest)), **own}
    with Client(door) as client:
        client.send(
            ask(door, f"blobs/{image.layers[0]}")
            + ask(door, "manifests/2")
            + head("PUT", f"/v2/{door.repo}/manifests/2", push)
            + image.manifest
            + ask(door, "manifests/2")
        )
        assert reply(client.answers) == (200, data)
        assert reply(client.answers)[0] == 404
        assert reply(client.answers) == (201, b"")
        assert reply(client.answers) == (200, image.manifest)
    assert witness.taken_over == 1


def test_upload_goes_through_with_tls_1_2(proxy_door: Door, witness: Witness) -> None:
    door, own, data = proxy_door, authorization(proxy_door), random_bytes(LARGE, proxy_door.repo)
    image = door.hub.image(door.repo, "1")
    begun = door.request("POST", f"/v2/{door.repo}/blobs/uploads/", own | {"Content-Length": "0"})
    upload = head("PATCH", begun.headers["location"], {"Host": HUB_HOST, "Content-Length": str(LARGE), **own})
    trust, before = door.product.trust(), witness.taken_over
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    with trust.wrap_socket(door.product.tunnel(HUB_HOST, 443), server_hostname=HUB_HOST) as client:
        for data_sent, expected in ((b"", 200), (upload + data, 202), (b"", 200)):
            client.sendall(data_sent or ask(door, "manifests/1"))
            assert reply(client.makefile("rb")) == (expected, image.manifest if expected == 200 else b"")
    assert witness.taken_over - before == 1


# -- requests that are not plain


@pytest.mark.parametrize("at", [1, 20, -1])
def test_request_that_comes_in_pieces_is_answered(door: Door, witness: Witness, at: int) -> None:
    image = door.hub.image(door.repo, "1")
    asked = ask(door, "manifests/1")
    with Client(door) as client:
        client.send(asked + asked[:at])
        assert reply(client.answers) == (200, image.manifest)
        client.send(asked[at:])
        assert reply(client.answers) == (200, image.manifest)
        client.send(asked)
        assert reply(client.answers) == (200, image.manifest)
    assert witness.taken_over == 0


def test_request_in_many_records_is_answered(proxy_door: Door) -> None:
    image = proxy_door.hub.image(proxy_door.repo, "1")
    asked = ask(proxy_door, "manifests/1")
    with Client(proxy_door) as client:
        client.send(*(asked[at : at + 1] for at in range(len(asked))))
        assert reply(client.answers) == (200, image.manifest)
        client.send(asked)
        assert reply(client.answers) == (200, image.manifest)


def test_records_that_arrive_byte_by_byte_are_read(proxy_door: Door, witness: Witness) -> None:
    image = proxy_door.hub.image(proxy_door.repo, "1")
    with Client(proxy_door) as client:
        client.way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in client.sealed(ask(proxy_door, "manifests/1")):
            client.way.sendall(bytes([byte]))
        assert reply(client.answers) == (200, image.manifest)
    assert witness.taken_over == 0


@pytest.mark.parametrize(
    "fields",
    [{"Expect": "100-continue"}, {"Content-Length": "0"}, {"TE": "trailers"}, {"X": "x" * 20_000}],
    ids=lambda fields: next(iter(fields)),
)
def test_unusual_request_is_answered_on_a_kept_connection(door: Door, witness: Witness, fields: dict[str, str]) -> None:
    image = door.hub.image(door.repo, "1")
    with Client(door) as client:
        for more in ({}, fields, {}):
            client.send(ask(door, "manifests/1", **more))
            while (answer := reply(client.answers))[0] == 100:
                pass
            assert answer == (200, image.manifest)
    assert witness.taken_over == 1


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"GET / HTTP/1.1\n\n", b"\r\n\r\n\r\n", b"\0" * 70_000])
def test_no_request_at_all_gets_no_content(door: Door, data: bytes) -> None:
    image = door.hub.image(door.repo, "1")
    with Client(door) as client:
        client.send(ask(door, "manifests/1"))
        assert reply(client.answers) == (200, image.manifest)
        client.send(data)
        client.end()
        assert b"HTTP/1.1 200" not in client.answers.read()


def test_mirror_tells_that_it_does_not_know_a_namespace(rig: Rig, witness: Witness) -> None:
    rig.refresh()
    door = rig.door("mirror")
    image = door.hub.image(door.repo, "1")
    with Client(door) as client:
        for namespace, expected in (("docker.io", 200), ("ghcr.io", 404), ("docker.io", 200)):
            client.send(ask(door, f"manifests/1?ns={namespace}"))
            status, body = reply(client.answers)
            assert (status, body == image.manifest) == (expected, expected == 200)
    assert witness.taken_over == 1
    rig.check()


# -- tunnels and handshakes


def test_tunnel_to_a_host_that_is_not_ours_is_raw(proxy_door: Door, witness: Witness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tunnel = proxy_door.product.tunnel("localhost", server.getsockname()[1])
        tunnel.sendall(b"anything \0\xff")
        connection, _ = server.accept()
        with tunnel, connection:
            assert connection.recv(100) == b"anything \0\xff"
            connection.sendall(b"at all")
            assert tunnel.recv(100) == b"at all"
    assert witness.taken_over == 1


def test_client_need_not_wait_before_its_hello(proxy_door: Door, witness: Witness) -> None:
    image = proxy_door.hub.image(proxy_door.repo, "1")
    connect = head("CONNECT", f"{HUB_HOST}:443", {"Host": f"{HUB_HOST}:443"})
    with socket.create_connection(("127.0.0.1", proxy_door.product.proxy), PATIENCE) as way:
        client = Client(proxy_door, way=way)
        way.sendall(connect + client.hello())
        client.shake(after_connect(way))
        client.send(ask(proxy_door, "manifests/1"))
        assert reply(client.answers) == (200, image.manifest)
    assert witness.taken_over == 0


def after_connect(way: socket.socket) -> bytes:
    """What came behind the answer to a CONNECT."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += way.recv(4096)
    return received.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_hello_may_come_in_small_pieces(proxy_door: Door, witness: Witness, size: int) -> None:
    image = proxy_door.hub.image(proxy_door.repo, "1")
    with proxy_door.product.tunnel(HUB_HOST, 443) as way:
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(proxy_door, way=way)
        hello = client.hello()
        for at in range(0, len(hello), size):
            way.sendall(hello[at : at + size])
        client.shake()
        client.send(ask(proxy_door, "manifests/1"))
        assert reply(client.answers) == (200, image.manifest)
    assert witness.taken_over == 0


@pytest.mark.parametrize("name", [None, "REGISTRY-1.docker.io", "auth.docker.io"])
def test_client_that_asks_for_another_name_gets_its_tls_from_mitmproxy(
    proxy_door: Door, witness: Witness, name: str | None
) -> None:
    image = proxy_door.hub.image(proxy_door.repo, "1")
    with proxy_door.product.tunnel(HUB_HOST, 443) as way:
        client = Client(proxy_door, way=way, name=name)
        way.sendall(client.hello())
        client.shake()
        client.send(ask(proxy_door, "manifests/1"))
        assert reply(client.answers) == (200, image.manifest)
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
def test_what_is_no_tls_in_a_tunnel_gets_no_content_and_an_end(proxy_door: Door, data: bytes) -> None:
    with proxy_door.product.tunnel(HUB_HOST, 443) as tunnel:
        tunnel.sendall(data)
        tunnel.shutdown(socket.SHUT_WR)
        received = b""
        while piece := tunnel.recv(4096):
            received += piece
    assert b"200" not in received
    assert proxy_door.request("GET", "/v2/").status == 401
    assert proxy_door.hub.count() == 0
