"""With an outbound proxy, all connections of the cache to other hosts go through it, and its password stays secret."""

import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from support.http_client import TIMEOUT, Answer, Exchange, head, wait_until
from support.ports import free_port
from support.program import HUB_HOST, LISTENERS, Program, running_program
from support.pushes import credentials, manifest, push_blob, push_manifest
from support.standin import Hub, random_bytes
from support.standin.tls import make as make_certificate
from support.tinyproxy import PASSWORD, SOURCE, USER, Tinyproxy, running_tinyproxy
from support.users import basic

SIZE = 3_000_000


class Relay:
    """Forwards connections from a port of its own to another, as a port of a container is forwarded; with `tls` it
    decrypts them."""

    def __init__(self, target: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.connections = 0
        self._tls = tls
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._forward)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _forward(self, request: socket.socket, *_: object) -> None:
        self.connections += 1
        if self._tls is not None:
            request = self._tls.wrap_socket(request, server_side=True)
        with request, socket.create_connection(("127.0.0.1", self.target), TIMEOUT) as onward:
            while ready := select.select([request, onward], [], [], TIMEOUT)[0]:
                for source in ready:
                    data = source.recv(1 << 16)  # more than a TLS record, so that nothing stays in its buffer
                    if not data:
                        return
                    (onward if source is request else request).sendall(data)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def outbound() -> Iterator[Tinyproxy]:
    with running_tinyproxy() as proxy:
        yield proxy


def environment(url: str, **more: str) -> dict[str, str]:
    return {"HTTPS_PROXY": url, "http_proxy": url} | more


def started(hub: Hub, environment: dict[str, str] | None = None, **options: str | list[str]) -> Any:
    """Run the program in front of a Hub that may use TLS; returns a context manager."""
    trust: dict[str, str | list[str]] = {"ssl_verify_upstream_trusted_ca": str(hub.ca_file)} if hub.ca_file else {}
    return running_program(hub, HUB_HOST, environment, **trust, **options)


def get_by_proxy(program: Program, url: str) -> Answer:
    """Request a plain-http URL at the proxy listener."""
    with socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as connection:
        fields = {"Host": url.split("/")[2], "Connection": "close", "Authorization": basic("bob", "of-the-client")}
        connection.sendall(head("GET", url, fields))
        return Exchange(connection, "GET").finish()


def pull(program: Program, listener: str) -> int:
    """Pull an image with a redirected blob; return the status of the manifest."""
    client = program.client(listener)
    image = program.hub.image(client.repo, "1", [random_bytes(SIZE, client.repo)])
    assert client.manifest("1", method="HEAD").status in (200, 503)
    answer = client.manifest("1")
    if answer.status == 200:
        assert client.blob(image.layers[0]).body == random_bytes(SIZE, client.repo)
    return answer.status


def push_and_pull_private(program: Program) -> None:
    """Push an image and read it back, which mitmproxy forwards."""
    client = program.client("proxy")
    program.hub.user("alice", "secret")
    client.repo = client.repo.replace("library/", "alice/")
    program.hub.private(client.repo, {"alice": "secret"})
    headers = credentials(client)
    digest = push_blob(client, random_bytes(SIZE, client.repo), headers)
    body = manifest(digest)
    assert push_manifest(client, "1", body, headers).status == 201
    assert client.manifest("1", headers).body == body
    assert client.blob(digest, headers).status == 307  # the client itself follows the redirect to the CDN


def assert_tunnel_works(program: Program, source: str) -> None:
    """Open a tunnel to a server that is not a registry, which sees a connection from `source`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        with program.tunnel("localhost", server.getsockname()[1]) as tunnel:
            tunnel.sendall(b"from the client")
            accepted, address = server.accept()
            with accepted:
                assert address[0] == source
                assert accepted.recv(100) == b"from the client"
                accepted.sendall(b"from the server")
                assert tunnel.recv(100) == b"from the server"


def assert_all_came_from(hub: Hub, source: str) -> None:
    kinds = {record.kind for record in hub.log}
    assert {"manifest", "blob", "token", "upload"} <= kinds, kinds
    assert {record.remote for record in hub.log} == {source}
    assert hub.count(listener="cdn") > 0
    assert [record.path for record in hub.log if record.header("Proxy-Authorization")] == []


def assert_password_is_absent(program: Program) -> None:
    pages = [program.status_page(path).decode() for path in ("/healthz", "/metrics")]
    encoded = basic(USER, PASSWORD).split()[1]
    for text in (program.log, *pages):
        for secret in (PASSWORD, encoded):
            assert secret not in text


@pytest.mark.parametrize(
    ("tls", "options"),
    [
        (True, {}),
        (False, {}),
        (True, {"flow_detail": "3"}),
        (False, {"flow_detail": "3"}),
        (True, {"hubcache_workers": "2"}),
    ],
    ids=["https", "http", "https in mitmproxy", "http in mitmproxy", "workers"],
)
def test_everything_goes_through_the_proxy_of_the_environment(
    outbound: Tinyproxy, tls: bool, options: dict[str, str]
) -> None:
    with (
        Hub(tls=tls) as hub,
        started(hub, environment(outbound.url), hubcache_tunnel=["localhost"], **options) as program,
    ):
        assert f"outbound proxy http://127.0.0.1:{outbound.port}" in program.log
        assert [pull(program, listener) for listener in LISTENERS] == [200, 200]
        push_and_pull_private(program)
        assert_tunnel_works(program, SOURCE)
        assert_all_came_from(hub, SOURCE)
        assert_password_is_absent(program)


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
def test_proxy_itself_may_speak_tls(outbound: Tinyproxy, tls: bool, tmp_path: Path) -> None:
    with Hub(tls=tls) as hub:
        ca_file, context = make_certificate(tmp_path, ["localhost"])
        trusted = tmp_path / "trusted.pem"
        trusted.write_text(ca_file.read_text() + (hub.ca_file.read_text() if hub.ca_file else ""))
        with Relay(outbound.port, context) as relay:
            url = f"https://{USER}:{PASSWORD}@localhost:{relay.url.rpartition(':')[2]}"
            options = {"ssl_verify_upstream_trusted_ca": str(trusted), "hubcache_tunnel": "localhost"}
            with running_program(hub, HUB_HOST, environment(url), **options) as program:
                assert [pull(program, listener) for listener in LISTENERS] == [200, 200]
                push_and_pull_private(program)
                assert_tunnel_works(program, SOURCE)
                assert_all_came_from(hub, SOURCE)


def test_everything_goes_through_the_proxy_of_the_upstream_mode(outbound: Tinyproxy, tmp_path: Path) -> None:
    with Hub(tls=True) as hub, Hub() as other:
        options = {"ssl_verify_upstream_trusted_ca": str(hub.ca_file), "upstream_auth": f"{USER}:{PASSWORD}"}
        program = Program(tmp_path, hub, options | {"hubcache_tunnel": "localhost", "flow_detail": "3"})
        mode = program.command.index(f"regular@{program.proxy}")
        program.command[mode] = f"upstream:http://127.0.0.1:{outbound.port}@{program.proxy}"
        del program.command[mode + 1 : mode + 3]  # the mirror, which is refused with `upstream_auth`
        program.start()
        try:
            assert pull(program, "proxy") == 200
            push_and_pull_private(program)
            assert_tunnel_works(program, SOURCE)
            assert_all_came_from(hub, SOURCE)
            assert get_by_proxy(program, f"{other.url()}/v2/").status == 401
            assert [(record.remote, record.header("Proxy-Authorization")) for record in other.log] == [(SOURCE, None)]
            wait_until(lambda: f"GET {other.url()}/v2/" in program.log)
            assert_password_is_absent(program)
            program.assert_no_errors()
        finally:
            program.stop()


@pytest.mark.parametrize("more", [{}, {"flow_detail": "3"}], ids=["regular", "shown"])
def test_plain_http_of_other_hosts_goes_through_the_proxy(outbound: Tinyproxy, more: dict[str, str]) -> None:
    with (
        Hub() as other,
        running_program(None, HUB_HOST, environment(outbound.url), hubcache_tunnel=["localhost"], **more) as program,
    ):
        for _ in range(2):
            assert get_by_proxy(program, f"{other.url()}/v2/").status == 401
        assert [(record.remote, record.authorization) for record in other.log] == [
            (SOURCE, basic("bob", "of-the-client"))
        ] * 2
        assert other.log[0].header("Proxy-Authorization") is None
        assert_password_is_absent(program)
        if more:
            wait_until(lambda: f"GET {other.url()}/v2/" in program.log)


def test_no_connection_bypasses_a_proxy_that_is_down() -> None:
    port = free_port()
    url = f"http://{USER}:{PASSWORD}@127.0.0.1:{port}"
    with Hub(tls=True) as hub, started(hub, environment(url), hubcache_tunnel=["localhost"]) as program:
        assert [pull(program, listener) for listener in LISTENERS] == [503, 503]
        client = program.client("proxy")
        assert client.request("POST", f"/v2/{client.repo}/blobs/uploads/", {"Authorization": "Bearer x"}).status == 503
        assert get_by_proxy(program, f"http://localhost:{hub.ports['registry']}/v2/").status == 503
        with program.tunnel("localhost", hub.ports["registry"]) as tunnel:
            tunnel.sendall(b"anything")
            assert tunnel.recv(1) == b""
        assert hub.log == []
        assert f"outbound proxy http://127.0.0.1:{port} cannot be reached" in str(program.health["upstreams_down"])
        assert_password_is_absent(program)


def test_wrong_password_is_reported_without_it(outbound: Tinyproxy) -> None:
    url = outbound.url.replace(PASSWORD, "wrong-password")
    with Hub(tls=True) as hub, started(hub, environment(url)) as program:
        assert pull(program, "mirror") == 503
        assert hub.log == []
        assert f"outbound proxy http://127.0.0.1:{outbound.port} answered 40" in str(program.health["upstreams_down"])
        assert "wrong-password" not in program.log


def test_hosts_in_no_proxy_are_reached_directly(outbound: Tinyproxy) -> None:
    direct = environment(outbound.url, no_proxy="localhost,127.0.0.0/8")
    with Hub(tls=True) as hub, started(hub, direct, hubcache_tunnel=["localhost"]) as program:
        assert [pull(program, listener) for listener in LISTENERS] == [200, 200]
        push_and_pull_private(program)
        assert_tunnel_works(program, "127.0.0.1")
        assert_all_came_from(hub, "127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "localhost", "[::1]", "169.254.169.254"])
def test_connect_to_a_local_address_is_403_behind_the_proxy(outbound: Tinyproxy, host: str) -> None:
    with running_program(None, HUB_HOST, environment(outbound.url)) as program:
        for target in (f"{host}:22", f"127.0.0.1:{outbound.port}"):
            with socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as connection:
                connection.sendall(head("CONNECT", target, {"Host": target}))
                assert Exchange(connection, "CONNECT").finish().status == 403


@pytest.mark.parametrize(
    ("variables", "options", "complaint"),
    [
        ({"HTTPS_PROXY": f"socks5://{USER}:{PASSWORD}@proxy:1080"}, {}, "HTTPS_PROXY: expected http"),
        ({"http_proxy": f"http://{USER}:{PASSWORD}@proxy:port"}, {}, "HTTP_PROXY: expected http"),
        ({}, {"upstream_auth": f"{USER}:{PASSWORD}"}, "upstream_auth: the mirror would send it"),
    ],
    ids=["socks", "port", "upstream_auth"],
)
def test_invalid_proxy_ends_the_start(
    tmp_path: Path, variables: dict[str, str], options: dict[str, str], complaint: str
) -> None:
    with Hub() as hub:
        program = Program(tmp_path, hub, options)
        program.environment = variables
        program.launch()
        assert program.wait_for_exit() != 0
        assert complaint in program.log
        assert PASSWORD not in program.log


def test_proxy_that_is_the_cache_itself_ends_the_start(tmp_path: Path) -> None:
    with Hub() as hub:
        program = Program(tmp_path, hub, {})
        program.environment = {"HTTPS_PROXY": f"http://localhost:{program.proxy}"}
        program.launch()
        assert program.wait_for_exit() != 0
        assert f"outbound proxy http://localhost:{program.proxy} is this cache itself" in program.log


@pytest.mark.parametrize("more", [{}, {"flow_detail": "2"}], ids=["direct", "mitmproxy"])
def test_requests_that_come_back_are_refused(more: dict[str, str]) -> None:
    """The proxy is a forwarded port that leads back to the cache, which the cache cannot detect at its start."""
    with Relay() as relay, running_program(None, HUB_HOST, environment(relay.url), **more) as program:
        relay.target = program.proxy
        with program.tunnel("other.example", 443) as tunnel:
            tunnel.sendall(b"anything")
            assert tunnel.recv(1) == b""
        assert get_by_proxy(program, "http://other.example/").status == 403
        assert relay.connections == 2
