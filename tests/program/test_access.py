"""Which clients may connect, and which destinations they may reach, with the real program."""

import base64
import contextlib
import socket
from collections.abc import Iterator

import pytest
from support.http_client import TIMEOUT, Answer, Exchange, head, wait_until
from support.program import ACCEPT, HUB_HOST, Program, RegistryClient, program_fixtures, running_program
from support.standin import random_bytes

program, client = program_fixtures()
WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


def sent(port: int, data: bytes, method: str = "GET", source: str = "127.0.0.1") -> Answer:
    """Send bytes, and return the answer, after which the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT, (source, 0)) as connection:
        connection.sendall(data)
        answer = Exchange(connection, method).finish()
        assert connection.recv(1) == b""
        return answer


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener of this machine that no client may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::1]", "127.1", "0.0.0.0"])
def test_connect_to_this_machine_is_403(program: Program, listener: socket.socket, host: str) -> None:
    target = f"{host}:{listener.getsockname()[1]}"
    answer = sent(program.proxy, head("CONNECT", target, {"Host": target}), "CONNECT")
    assert answer.status == 403
    assert answer.body.decode().count("\n") == 1
    assert "hubcache_tunnel" in answer.body.decode()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_absolute_uri_of_this_machine_is_403(program: Program, listener: socket.socket, method: str) -> None:
    port = listener.getsockname()[1]
    data = head(method, f"http://localhost:{port}/healthz", {"Host": HUB_HOST, "Content-Length": "4"}) + b"body"
    answer = sent(program.proxy, data)
    assert (answer.status, answer.headers["content-type"]) == (403, "text/plain; charset=utf-8")


@pytest.mark.parametrize("target", ["/healthz", "/v2/", "*"])
def test_request_that_names_no_host_in_its_first_line_is_400_at_the_proxy(program: Program, target: str) -> None:
    data = head("GET", target, {"Host": f"127.0.0.1:{program.status}"})
    assert sent(program.proxy, data).failure == (400, "NAME_INVALID")


def test_own_listeners_are_refused(program: Program) -> None:
    for port in (program.proxy, program.mirror, program.status):
        target = f"127.0.0.1:{port}"
        assert sent(program.proxy, head("CONNECT", target, {"Host": target}), "CONNECT").status == 403


def test_registry_at_a_local_address_is_reached(client: RegistryClient) -> None:
    """The stand-in Hub is at loopback; a push is passed on by mitmproxy."""
    image = client.hub.image(client.repo, "1", [random_bytes(3_000_000, client.repo)])
    assert client.manifest("1").body == image.manifest
    assert client.blob(image.layers[0]).status == 200
    if client.is_proxy:
        assert client.request("POST", f"/v2/{client.repo}/blobs/uploads/").status in (202, 401)


# -- ambiguous heads


@pytest.mark.parametrize("value", [b"a/b,\r\n c/d", b"a/b\nX: y", b"a\0b", b"a/\xfc"], ids=repr)
def test_ambiguous_head_is_400_and_does_not_reach_the_registry(client: RegistryClient, value: bytes) -> None:
    image = client.hub.image(client.repo, "1")
    for _ in range(5):
        data = head("GET", f"/v2/{client.repo}/manifests/1", {"Host": HUB_HOST, "Accept": "x"})
        assert client.send_raw(data.replace(b"Accept: x", b"Accept: " + value)).failure == (400, "NAME_INVALID")
    assert client.hub.count() == 0
    assert client.program.health["upstreams_down"] == {}
    assert client.manifest("1").body == image.manifest


def test_empty_line_before_a_request_is_skipped(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "1")
    path = f"/v2/{client.repo}/manifests/1"
    with client.connect() as connection:
        connection.sendall(b"\r\n" + head("GET", path, ACCEPT | {"Host": HUB_HOST, "Connection": "close"}))
        assert Exchange(connection, "GET").finish().body == image.manifest


def test_chunked_request_with_trailers_is_answered(client: RegistryClient) -> None:
    body = b"4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n"
    path = f"/v2/{client.repo}/manifests/1"
    with client.connect() as connection:
        connection.sendall(head("GET", path, {"Host": HUB_HOST, "Transfer-Encoding": "chunked", "Connection": "close"}))
        connection.sendall(body)
        assert Exchange(connection, "GET").finish().status == (401 if client.is_proxy else 404)


# -- options


@WORKERS
def test_only_destinations_in_hubcache_tunnel_are_reached(workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with running_program(
            hubcache_tunnel=[f"localhost:{port}", "*.example.com"], hubcache_workers=workers
        ) as program:
            with program.tunnel("localhost", port) as tunnel:
                tunnel.sendall(b"anything")
                with server.accept()[0] as accepted:
                    assert accepted.recv(100) == b"anything"
            for target in (f"127.0.0.1:{port}", f"localhost:{port + 1}", "10.0.0.1:443"):
                assert sent(program.proxy, head("CONNECT", target, {"Host": target}), "CONNECT").status == 403


@WORKERS
def test_clients_of_other_networks_are_turned_away(workers: str) -> None:
    with running_program(hubcache_clients=["127.0.0.1", "10.0.0.0/8"], hubcache_workers=workers) as program:
        for port in (program.proxy, program.mirror):
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port), TIMEOUT, ("127.0.0.2", 0)) as stranger:
                    assert ended(stranger)
        assert program.client("mirror").request("GET", "/v2/").status == 200
        assert program.client("proxy").request("GET", "/v2/").status == 401
        wait_until(lambda: "such as 127.0.0.2" in program.log)
        assert (
            program.log.count("in hubcache_clients are refused") <= int(workers) + 1
        )  # each process logs it, the owner as well


def test_clients_of_other_networks_are_turned_away_where_mitmproxy_serves_all() -> None:
    with running_program(hubcache_clients=["127.0.0.1"], flow_detail="2") as program:
        for port in (program.proxy, program.mirror):
            with socket.create_connection(("127.0.0.1", port), TIMEOUT, ("127.0.0.2", 0)) as stranger:
                assert ended(stranger)
        assert program.client("mirror").request("GET", "/v2/").status == 200


@pytest.mark.parametrize("more", [{}, {"flow_detail": "2"}], ids=["direct", "mitmproxy"])
@pytest.mark.parametrize("sends", ["nothing", "a request", "a request that mitmproxy answers"])
def test_idle_clients_do_not_use_up_descriptors(sends: str, more: dict[str, str]) -> None:
    fields = {"Host": HUB_HOST} | ({"TE": "trailers"} if "mitmproxy" in sends else {})
    with running_program(**more) as program, contextlib.ExitStack() as stack:
        program.stop()
        program.command[:0] = ["sh", "-c", 'ulimit -n 256 && exec "$@"', "sh"]
        program.start()
        for number in range(400):
            address = ("127.0.0.1", program.mirror), TIMEOUT, (f"127.0.0.{2 + number % 8}", 0)
            idle = stack.enter_context(socket.create_connection(*address))
            if sends != "nothing":
                idle.sendall(head("GET", "/v2/", fields))
                assert Exchange(idle, "GET").finish().status == 200
        assert program.client("mirror").request("GET", "/v2/").status == 200
        assert program.client("proxy").request("GET", "/v2/").status == 401
        assert "cannot accept" not in program.log


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@WORKERS
def test_proxyauth_asks_for_a_password_and_pulls_work_with_it(workers: str) -> None:
    target = f"{HUB_HOST}:443"
    with running_program(proxyauth="ann:secret", hubcache_workers=workers) as program:
        image = program.hub.image("library/app", "1", [random_bytes(3_000_000)])
        for given in ({}, {"Proxy-Authorization": basic("ann:wrong")}):
            with socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as refused:
                refused.sendall(head("CONNECT", target, {"Host": target} | given))
                answer = Exchange(refused, "CONNECT").finish()  # the client may try again on the same connection
            assert (answer.status, "proxy-authenticate" in answer.headers) == (407, True)
        for path, body in (
            (f"manifests/{image.tag}", image.manifest),
            (f"blobs/{image.layers[0]}", random_bytes(3_000_000)),
        ):
            with socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as plain:
                plain.sendall(head("CONNECT", target, {"Host": target, "Proxy-Authorization": basic("ann:secret")}))
                assert plain.recv(4096).startswith(b"HTTP/1.1 200")
                with program.ssl_context().wrap_socket(plain, server_hostname=HUB_HOST) as inside:
                    fields = ACCEPT | {"Host": HUB_HOST, "Connection": "close"}
                    inside.sendall(head("GET", f"/v2/library/app/{path}", fields))
                    assert Exchange(inside, "GET").finish().body == body


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()
