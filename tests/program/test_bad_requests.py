"""Invalid requests are answered in the form of the distribution spec, and nothing is sent upstream."""

import contextlib
import socket

import pytest
from support.http_client import TIMEOUT, Exchange, head
from support.program import ACCEPT, Program, RegistryClient, program_fixtures

program, client = program_fixtures()

HEX = "0" * 64
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/UPPER/manifests/latest", "NAME_INVALID"),
        ("/v2/library/-app/manifests/latest", "NAME_INVALID"),
        ("/v2/library/app-/blobs/" + DIGEST, "NAME_INVALID"),
        ("/v2/library//app/manifests/latest", "NAME_INVALID"),
        ("/v2/library/a..b/manifests/latest", "NAME_INVALID"),
        ("/v2/../../etc/passwd/manifests/latest", "NAME_INVALID"),
        ("/v2/" + "a" * 256 + "/manifests/latest", "NAME_INVALID"),
        ("/v2/library/app/manifests/-latest", "MANIFEST_INVALID"),
        ("/v2/library/app/manifests/" + "t" * 129, "MANIFEST_INVALID"),
        ("/v2/library/app/manifests/a b".replace(" ", "%20"), "MANIFEST_INVALID"),
        ("/v2/library/app/manifests/", "MANIFEST_INVALID"),
        ("/v2/library/app/manifests/sha256:123", "DIGEST_INVALID"),
        ("/v2/library/app/manifests/md5:" + "0" * 32, "DIGEST_INVALID"),
        ("/v2/library/app/blobs/latest", "DIGEST_INVALID"),
        ("/v2/library/app/blobs/sha256:" + HEX.replace("0", "A"), "DIGEST_INVALID"),
        ("/v2/library/app/blobs/sha256:" + HEX + "0", "DIGEST_INVALID"),
        ("/v2/library/app/blobs/", "DIGEST_INVALID"),
        ("/v2/library%2Fapp/manifests/latest", "NAME_INVALID"),
        ("/v2/library/app/manifests/la%zztest", "NAME_INVALID"),
        ("/v2/library/app/manifests/%", "NAME_INVALID"),
        ("/v2/library/app/manifests/latest%00", "NAME_INVALID"),
        ("/v2/library/app/manifests/latest%0d%0aX: y".replace(" ", ""), "NAME_INVALID"),
        ("/v2/library/%ff/manifests/latest", "NAME_INVALID"),
        ("/v2/library/app/manifests/\xe9", "MANIFEST_INVALID"),
        ("/v2/library/\xe9/manifests/latest", "NAME_INVALID"),
    ],
)
def test_malformed_path_is_400(client: RegistryClient, path: str, code: str, method: str) -> None:
    answer = client.request(method, path)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    if method == "GET":
        assert answer.failure == (400, code)
        assert answer.headers["content-length"] == str(len(answer.body))
    assert client.hub.count() == 0


def test_query_is_not_part_of_the_repository_name(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    assert client.request("GET", f"/v2/{client.repo}/manifests/latest?x=%zz&ns=docker.io").body == image.manifest


@pytest.mark.parametrize(
    "name", ["a", "a/b/c/d", "a_b", "a__b", "a-b", "a---b", "a.b", "x" * 255, "library/manifests", "blobs/uploads/x"]
)
def test_unusual_valid_repository_name_is_served(client: RegistryClient, name: str) -> None:
    image = client.hub.image(name, "latest")
    assert client.manifest("latest", repo=name).body == image.manifest


@pytest.mark.parametrize("tag", ["_", "1", "T" * 128, "a.b-c_d", "sha256-" + HEX + ".sig"])
def test_unusual_valid_tag_is_served(client: RegistryClient, tag: str) -> None:
    image = client.hub.image(client.repo, tag)
    assert client.manifest(tag).body == image.manifest


@pytest.mark.parametrize("path", ["/", "/v1/", "/v2x/", "/favicon.ico", "/v2/_catalog"])
def test_unknown_path_is_passed_to_the_upstream(client: RegistryClient, path: str) -> None:
    """The mirror passes on only paths that may be an extension of the registry API."""
    answer = client.request("GET", path)
    passed_on = client.hub.requests(path=path)
    assert len(passed_on) == (1 if client.is_proxy or path == "/v2/_catalog" else 0)
    if passed_on:
        assert answer.status == passed_on[0].status
    else:
        assert answer.status == 404


@pytest.mark.parametrize("method", ["OPTIONS", "PATCH", "PROPFIND"])
def test_other_method_is_passed_to_the_upstream(client: RegistryClient, method: str) -> None:
    client.hub.image(client.repo, "latest")
    answer = client.request(method, f"/v2/{client.repo}/manifests/latest")
    (passed_on,) = client.hub.requests(method=method)
    assert answer.status == passed_on.status


# -- invalid HTTP


def test_oversized_head_is_431(client: RegistryClient) -> None:
    with client.connect() as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nCookie: ")
        with contextlib.suppress(OSError):  # the program answers and closes the connection before all is sent
            for _ in range(200):
                connection.sendall(b"c" * 1024)
        answer = Exchange(connection, "GET").finish()
    assert answer.failure == (431, "UNSUPPORTED")


def test_head_as_large_as_the_tokens_of_large_accounts_is_accepted(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest")
    assert client.manifest("latest", {"X-Large": "x" * 12_000, "X-Larger": "x" * 12_000}).body == image.manifest


def test_many_small_headers_are_431_too(client: RegistryClient) -> None:
    lines = "".join(f"X-{number}: {'y' * 50}\r\n" for number in range(4000))
    with client.connect() as connection:
        with contextlib.suppress(OSError):  # the program answers and closes the connection before all is sent
            connection.sendall(f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{lines}".encode())
        assert Exchange(connection, "GET").finish().failure == (431, "UNSUPPORTED")


@pytest.mark.parametrize(
    "malformed",
    [
        b"GET /v2/ HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET /v2/\r\n\r\n",
        b"GET /v2/ HTTP/1.1 more\r\n\r\n",
        b"GET /v2/ SMTP/1.1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n",
    ],
)
def test_malformed_http_is_400(client: RegistryClient, malformed: bytes) -> None:
    assert client.send_raw(malformed).failure[0] == 400
    assert client.hub.count() == 0


def test_bytes_that_are_not_http_are_400_at_the_mirror(program: Program) -> None:
    program.reset()
    assert program.client("mirror").send_raw(b"\0\1\2 hello\r\n\r\n").failure == (400, "NAME_INVALID")
    program.assert_no_errors()


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /v2/ HT", b"GET /v2/ HTTP/1.1\r\nHost:"])
def test_client_that_disconnects_within_its_request_causes_no_error(client: RegistryClient, sent: bytes) -> None:
    with client.connect() as connection:
        connection.sendall(sent)
    assert client.request("GET", "/v2/", {"Authorization": "Bearer x"}).status == 200
    assert client.hub.count() == 0


def test_connect_to_an_invalid_target_is_refused(program: Program) -> None:
    program.reset()
    for target in ("nonsense", ":443", "host:port", "[::1:443", "registry-1.docker.io:99999"):
        with socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as connection:
            connection.sendall(head("CONNECT", target, {"Host": "x"}))
            assert connection.recv(100).startswith(b"HTTP/1.1 4")
    program.assert_no_errors()


def test_host_header_does_not_select_the_registry(client: RegistryClient) -> None:
    """At the proxy the target of the CONNECT selects it, at the mirror the configuration."""
    image = client.hub.image(client.repo, "latest")
    answer = client.manifest("latest", {"Host": "registry.example.com"})
    assert answer.body == image.manifest


def test_body_of_a_read_request_is_ignored(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "latest", annotations={"of": client.repo})
    answer = client.request("GET", f"/v2/{client.repo}/manifests/latest", ACCEPT, body=b"x" * 100_000)
    assert (answer.status, answer.body) == (200, image.manifest)
    assert client.blob(image.layers[0]).body == b"layer"
