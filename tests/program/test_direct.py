"""Direct connections: answers, log lines, and how connections end."""

import contextlib
import io
import os
import re
import ssl
from pathlib import Path

import pytest
from support.http_client import Exchange, head, wait_until
from support.program import (
    HUB_HOST,
    LISTENERS,
    TOKEN_HOST,
    Program,
    RegistryClient,
    program_fixtures,
    proxy_client_fixture,
    running_program,
)
from support.standin import Fault, Hub, random_bytes
from support.tls_client import NewLog, RawClient, make_certificates, new_log_fixture, read_answer, request_head

LARGE = 3_000_000

program, client = program_fixtures(make_certificates, hubcache_workers="1", hubcache_tag_ttl="600")
proxy_client = proxy_client_fixture()
new_log = new_log_fixture()
# -- answers


def test_pull_bypasses_mitmproxy(client: RegistryClient, new_log: NewLog) -> None:
    layers = [random_bytes(LARGE, client.repo), client.repo.encode()]
    image = client.hub.image(client.repo, "1", layers)
    for _ in range(2):  # cold and warm
        assert client.manifest("1", method="HEAD").status == 200
        assert client.manifest("1").body == image.manifest
        assert [client.blob(digest).body for digest in image.layers] == layers
        assert client.blob(image.layers[0], {"Range": "bytes=5-1000004"}).body == layers[0][5:1_000_005]
        assert client.manifest("none").failure == (404, "MANIFEST_UNKNOWN")
        client.wait_until_stored()
    assert client.request("GET", "/v2/").status in (200, 401)
    wait_until(lambda: len(new_log.answer_lines) == 13)
    assert new_log.mitmproxy_clients == 0


def test_token_request_bypasses_mitmproxy(proxy_client: RegistryClient, new_log: NewLog) -> None:
    assert proxy_client.token("repository:library/app:pull")
    wait_until(lambda: f"GET https://{TOKEN_HOST}/token?service=" in new_log.text)
    assert new_log.mitmproxy_clients == 0


def test_answer_is_logged_in_one_line(client: RegistryClient, new_log: NewLog) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(LARGE, client.repo)])
    urls = [
        f"/v2/{client.repo}/{path}" for path in ("manifests/1?ns=docker.io", f"blobs/{image.layers[0]}", "manifests/2")
    ]
    expected = []
    for url, result in zip(urls, ("200 miss 5..b", "200 miss 2.9m", "404 error ...b"), strict=True):
        with client.connect() as connection:
            host, port = connection.getsockname()
            connection.sendall(head("GET", url, {"Host": "elsewhere.example"}))
            Exchange(connection, "GET").finish()
        expected.append(re.escape(f"{host}:{port}: GET https://{HUB_HOST}{url} << ") + result)
    wait_until(lambda: len(new_log.answer_lines) == 3)
    for line, pattern in zip(new_log.answer_lines, expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_credentials_are_never_logged(client: RegistryClient, program: Program, new_log: NewLog) -> None:
    client.hub.image(client.repo, "1")
    secrets = {"Authorization": "Bearer my-password", "Cookie": "session=my-password", "X-Key": "my-password"}
    for path in ("/v2/", f"/v2/{client.repo}/manifests/1", "/v2/x/", f"/v2/{client.repo}/manifests/none"):
        client.request("GET", path, secrets)
    wait_until(lambda: len(new_log.answer_lines) >= 2)
    assert "my-password" not in program.log


def test_kept_connection_gets_many_answers(client: RegistryClient, new_log: NewLog) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(LARGE, client.repo)])
    with client.connect() as kept:
        for _ in range(10):
            for path, expected in (
                ("manifests/1", (200, image.manifest)),
                (f"blobs/{image.layers[0]}", (200, random_bytes(LARGE, client.repo))),
            ):
                kept.sendall(request_head(client, path, Connection="keep-alive"))
                assert read_answer(kept.makefile("rb")) == expected
    wait_until(lambda: len(new_log.answer_lines) == 20)
    assert new_log.mitmproxy_clients == 0


@pytest.mark.parametrize("is_warm", [True, False])
def test_pipelined_requests_are_answered_in_order(client: RegistryClient, new_log: NewLog, is_warm: bool) -> None:
    data = random_bytes(LARGE, client.repo)
    image = client.hub.image(client.repo, "1", [data, client.repo.encode()])
    wanted = [
        ("manifests/1", "GET", (200, image.manifest)),
        (f"blobs/{image.layers[0]}", "GET", (200, data)),
        ("manifests/1", "HEAD", (200, b"")),
        (f"blobs/{image.layers[0]}", "HEAD", (200, b"")),
        (f"blobs/{image.layers[1]}", "GET", (200, client.repo.encode())),
        ("manifests/1", "GET", (200, image.manifest)),
    ] * 3
    if is_warm:
        for path in ("manifests/1", *(f"blobs/{digest}" for digest in image.layers)):
            client.request("GET", f"/v2/{client.repo}/{path}")
        client.wait_until_stored()
    with client.connect() as kept:
        kept.sendall(b"".join(request_head(client, path, method) for path, method, _ in wanted))
        answers = kept.makefile("rb")
        for _, method, expected in wanted:
            assert read_answer(answers, method) == expected
    assert new_log.mitmproxy_clients == 0


def test_head_gets_the_length_of_a_body_and_no_body(client: RegistryClient, new_log: NewLog) -> None:
    image = client.hub.image(client.repo, "1", [b"layer"])
    for path, length in (("manifests/1", len(image.manifest)), (f"blobs/{image.layers[0]}", 5), ("manifests/2", None)):
        with RawClient(client) as connection:
            connection.send(request_head(client, path, "HEAD", Connection="close"))
            fields, end, body = connection.receive_all().partition(b"\r\n\r\n")
        assert (end, body) == (b"\r\n\r\n", b"")
        assert length is None or b"Content-Length: %d" % length in fields.split(b"\r\n")
    assert new_log.mitmproxy_clients == 0


@pytest.mark.parametrize("path", ["manifests/1", "manifests/none", "blobs"])
def test_connection_closes_where_the_client_says_so(client: RegistryClient, new_log: NewLog, path: str) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(LARGE, client.repo)])
    path = f"blobs/{image.layers[0]}" if path == "blobs" else path
    with RawClient(client) as connection:
        connection.send(request_head(client, path, Connection="close") + request_head(client, "manifests/1"))
        answers = io.BytesIO(connection.receive_all())
    assert read_answer(answers)[0] in (200, 404)
    assert answers.read() == b""
    assert new_log.mitmproxy_clients == 0


def test_tls_1_2_is_supported(proxy_client: RegistryClient, new_log: NewLog) -> None:
    data = random_bytes(LARGE, proxy_client.repo)
    digest = proxy_client.hub.blob(proxy_client.repo, data)
    trust = proxy_client.program.ssl_context()
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    tunnel = proxy_client.program.tunnel(HUB_HOST, 443)
    with trust.wrap_socket(tunnel, server_hostname=HUB_HOST) as connection:
        assert connection.version() == "TLSv1.2"
        for _ in range(2):
            connection.sendall(request_head(proxy_client, f"blobs/{digest}"))
            assert read_answer(connection.makefile("rb")) == (200, data)
    assert new_log.mitmproxy_clients == 0


def test_first_client_of_a_host_is_served_by_mitmproxy_which_makes_the_certificate(hub: Hub) -> None:
    with running_program(hub, hubcache_workers="1") as program:
        client, new_log = program.client("proxy"), NewLog(program)
        for _ in range(3):
            assert client.request("GET", "/v2/").status == 401
        wait_until(lambda: len(new_log.answer_lines) == 2)
        assert new_log.mitmproxy_clients == 1


# -- ends

CONTENT = ["cold manifest", "warm manifest", "cold blob", "warm blob"]


def put_content(client: RegistryClient, what: str) -> tuple[str, bytes]:
    """Put a manifest or a blob, and store it if `what` begins with "warm"; returns its path and body."""
    data = random_bytes(LARGE, client.repo)
    image = client.hub.image(client.repo, "1", [data])
    path, body = ("manifests/1", image.manifest) if "manifest" in what else (f"blobs/{image.layers[0]}", data)
    if "warm" in what:
        client.request("GET", f"/v2/{client.repo}/{path}")
        client.wait_until_stored()
    return path, body


@pytest.mark.parametrize("what", CONTENT)
def test_half_closed_connection_gets_its_answer_and_is_closed(
    client: RegistryClient, new_log: NewLog, what: str
) -> None:
    path, body = put_content(client, what)
    with RawClient(client) as connection:
        connection.send(request_head(client, path))
        connection.half_close()
        answers = io.BytesIO(connection.receive_all())
    assert read_answer(answers) == (200, body)
    assert answers.read() == b""
    assert new_log.mitmproxy_clients == 0


@pytest.mark.parametrize("what", CONTENT)
def test_client_that_ends_tls_after_its_request_is_answered(
    proxy_client: RegistryClient, new_log: NewLog, what: str
) -> None:
    path, body = put_content(proxy_client, what)
    with RawClient(proxy_client) as connection:
        connection.socket.sendall(connection.encrypt(request_head(proxy_client, path)) + connection.close_notify())
        answers = io.BytesIO(connection.receive_all())
    assert read_answer(answers) == (200, body)
    assert answers.read() == b""
    assert new_log.mitmproxy_clients == 0


@pytest.mark.parametrize("how", ["while the answer is awaited", "during the body"])
def test_broken_tls_ends_the_connection_and_logs_no_error(proxy_client: RegistryClient, how: str) -> None:
    client = proxy_client
    image = client.hub.image(client.repo, "1", [random_bytes(LARGE, client.repo)])
    garbage = b"\x17\x03\x03\x00\x20" + bytes(32)
    if how == "while the answer is awaited":
        client.hub.faults.add(Fault(kind="manifest", delay=0.3))
    with RawClient(client) as connection:
        if how == "during the body":
            connection.send(request_head(client, f"blobs/{image.layers[0]}"))
            assert connection.stream.readline() == b"HTTP/1.1 200 OK\r\n"
            connection.socket.sendall(garbage)
        else:
            connection.send(request_head(client, "manifests/1"))
            wait_until(lambda: client.hub.count(kind="manifest") == 1)
            connection.socket.sendall(garbage)
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):  # a TLS alert, or only the end of the connection
            connection.stream.read()
    assert client.request("GET", "/v2/").status == 401  # the fixture checks that the log has no errors


# -- options and scripts of the user


def test_headers_are_shown_with_flow_detail_2(hub: Hub) -> None:
    with running_program(hub, hubcache_workers="1", flow_detail="2") as program:
        new_log = NewLog(program)
        for name in LISTENERS:
            client = program.client(name)
            image = hub.image(client.repo, "1")
            for _ in range(2):
                assert client.request("GET", f"/v2/{client.repo}/manifests/1", {"X-Mine": "yes"}).body == image.manifest
        wait_until(lambda: new_log.text.count("X-Mine: yes") == 4)
        assert new_log.mitmproxy_clients == 4
        assert new_log.answer_lines == []


def test_line_is_written_at_once_also_to_a_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with running_program(hub, hubcache_workers="1") as program:
        assert program.client("mirror").manifest("1").status == 404
        wait_until(lambda: "<< 404" in program.log)


def test_no_line_is_written_with_flow_detail_0(hub: Hub) -> None:
    with running_program(hub, hubcache_workers="1", flow_detail="0") as program:
        make_certificates(program)
        new_log = NewLog(program)
        for name in LISTENERS:
            client = program.client(name)
            assert client.manifest("1").status in (401, 404)
        program.stop()  # all of its output is written by then
        assert (new_log.mitmproxy_clients, "GET" in new_log.text) == (0, False)


def test_script_that_is_loaded_later_sees_all_further_requests(hub: Hub, tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text("")
    with running_program(hub, arguments=["-s", str(script)], hubcache_workers="1") as program:
        make_certificates(program)
        new_log = NewLog(program)
        clients = [program.client(name) for name in LISTENERS]
        for client in clients:
            assert client.manifest("1").status in (401, 404)
        assert new_log.mitmproxy_clients == 0
        script.write_text("def request(flow):\n    print('script saw', flow.request.path, flush=True)\n")
        os.utime(script, (2**31, 2**31))  # mitmproxy sees that it is a newer one
        wait_until(lambda: f"Loading script {script}" in new_log.text)
        for client in clients:
            assert client.manifest("2").status in (401, 404)
        wait_until(lambda: all(f"script saw /v2/{client.repo}/manifests/2" in new_log.text for client in clients))
        assert new_log.mitmproxy_clients == 2


def test_connections_are_direct_again_when_a_script_stops_listening(hub: Hub, tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text("def response(flow):\n    print('script saw', flow.request.path, flush=True)\n")
    with running_program(hub, arguments=["-s", str(script)], hubcache_workers="1") as program:
        make_certificates(program)
        client, new_log = program.client("mirror"), NewLog(program)
        assert client.manifest("1").status == 404
        wait_until(lambda: f"script saw /v2/{client.repo}/manifests/1" in new_log.text)
        script.write_text("")
        os.utime(script, (2**31, 2**31))
        wait_until(lambda: f"Loading script {script}" in new_log.text)
        new_log = NewLog(program)
        assert client.manifest("1").status == 404
        wait_until(lambda: len(new_log.answer_lines) == 1)
        assert new_log.mitmproxy_clients == 0


def test_broken_record_behind_a_request_ends_the_connection_without_an_error(
    proxy_client: RegistryClient, program: Program
) -> None:
    proxy_client.hub.image(proxy_client.repo, "1")
    assert proxy_client.manifest("1").status == 200
    with RawClient(proxy_client) as connection, contextlib.suppress(OSError):
        connection.socket.sendall(
            connection.encrypt(request_head(proxy_client, "manifests/1")) + b"\x17\x03\x03\x00\x20" + bytes(32)
        )
        connection.receive_all()
    program.assert_no_errors()
