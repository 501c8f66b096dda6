"""Clients are answered without mitmproxy: what they get, what is said of it, and how it ends."""

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
from support.tls_client import Client, Witness, ask, reply, warm, witness_fixture

LARGE = 3_000_000

program, client = program_fixtures(warm, hubcache_workers="1", hubcache_tag_ttl="600")
proxy_client = proxy_client_fixture()
witness = witness_fixture()
# -- answers


def test_pull_never_reaches_mitmproxy(client: RegistryClient, witness: Witness) -> None:
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
    wait_until(lambda: len(witness.lines) == 13)
    assert witness.taken_over == 0


def test_token_is_given_without_mitmproxy(proxy_client: RegistryClient, witness: Witness) -> None:
    assert proxy_client.token("repository:library/app:pull")
    wait_until(lambda: f"GET https://{TOKEN_HOST}/token?service=" in witness.log)
    assert witness.taken_over == 0


def test_answer_is_told_in_one_line(client: RegistryClient, witness: Witness) -> None:
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
    wait_until(lambda: len(witness.lines) == 3)
    for line, pattern in zip(witness.lines, expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_credentials_are_never_told(client: RegistryClient, program: Program, witness: Witness) -> None:
    client.hub.image(client.repo, "1")
    secrets = {"Authorization": "Bearer my-password", "Cookie": "session=my-password", "X-Key": "my-password"}
    for path in ("/v2/", f"/v2/{client.repo}/manifests/1", "/v2/x/", f"/v2/{client.repo}/manifests/none"):
        client.request("GET", path, secrets)
    wait_until(lambda: len(witness.lines) >= 2)
    assert "my-password" not in program.log


def test_kept_connection_gets_many_answers(client: RegistryClient, witness: Witness) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(LARGE, client.repo)])
    with client.connect() as kept:
        for _ in range(10):
            for path, expected in (
                ("manifests/1", (200, image.manifest)),
                (f"blobs/{image.layers[0]}", (200, random_bytes(LARGE, client.repo))),
            ):
                kept.sendall(ask(client, path, Connection="keep-alive"))
                assert reply(kept.makefile("rb")) == expected
    wait_until(lambda: len(witness.lines) == 20)
    assert witness.taken_over == 0


@pytest.mark.parametrize("is_warm", [True, False])
def test_requests_that_are_sent_at_once_are_answered_in_order(
    client: RegistryClient, witness: Witness, is_warm: bool
) -> None:
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
        kept.sendall(b"".join(ask(client, path, method) for path, method, _ in wanted))
        answers = kept.makefile("rb")
        for _, method, expected in wanted:
            assert reply(answers, method) == expected
    assert witness.taken_over == 0


def test_head_gets_the_length_of_a_body_and_none(client: RegistryClient, witness: Witness) -> None:
    image = client.hub.image(client.repo, "1", [b"layer"])
    for path, length in (("manifests/1", len(image.manifest)), (f"blobs/{image.layers[0]}", 5), ("manifests/2", None)):
        with Client(client) as connection:
            connection.send(ask(client, path, "HEAD", Connection="close"))
            fields, end, body = connection.rest().partition(b"\r\n\r\n")
        assert (end, body) == (b"\r\n\r\n", b"")
        assert length is None or b"Content-Length: %d" % length in fields.split(b"\r\n")
    assert witness.taken_over == 0


@pytest.mark.parametrize("path", ["manifests/1", "manifests/none", "blobs"])
def test_connection_is_closed_where_the_client_wants_it(client: RegistryClient, witness: Witness, path: str) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(LARGE, client.repo)])
    path = f"blobs/{image.layers[0]}" if path == "blobs" else path
    with Client(client) as connection:
        connection.send(ask(client, path, Connection="close") + ask(client, "manifests/1"))
        answers = io.BytesIO(connection.rest())
    assert reply(answers)[0] in (200, 404)
    assert answers.read() == b""
    assert witness.taken_over == 0


def test_tls_1_2_is_spoken_too(proxy_client: RegistryClient, witness: Witness) -> None:
    data = random_bytes(LARGE, proxy_client.repo)
    digest = proxy_client.hub.blob(proxy_client.repo, data)
    trust = proxy_client.program.ssl_context()
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    tunnel = proxy_client.program.tunnel(HUB_HOST, 443)
    with trust.wrap_socket(tunnel, server_hostname=HUB_HOST) as connection:
        assert connection.version() == "TLSv1.2"
        for _ in range(2):
            connection.sendall(ask(proxy_client, f"blobs/{digest}"))
            assert reply(connection.makefile("rb")) == (200, data)
    assert witness.taken_over == 0


def test_first_client_of_a_host_is_mitmproxys_which_makes_the_certificate(hub: Hub) -> None:
    with running_program(hub, hubcache_workers="1") as program:
        client, witness = program.client("proxy"), Witness(program)
        for _ in range(3):
            assert client.request("GET", "/v2/").status == 401
        wait_until(lambda: len(witness.lines) == 2)
        assert witness.taken_over == 1


# -- ends

WHAT = ["cold manifest", "warm manifest", "cold blob", "warm blob"]


def something(client: RegistryClient, what: str) -> tuple[str, bytes]:
    """Path and body of something that is asked for, which is in the store when it is warm."""
    data = random_bytes(LARGE, client.repo)
    image = client.hub.image(client.repo, "1", [data])
    path, body = ("manifests/1", image.manifest) if "manifest" in what else (f"blobs/{image.layers[0]}", data)
    if "warm" in what:
        client.request("GET", f"/v2/{client.repo}/{path}")
        client.wait_until_stored()
    return path, body


@pytest.mark.parametrize("what", WHAT)
def test_client_that_says_no_more_gets_its_answer_and_then_the_end(
    client: RegistryClient, witness: Witness, what: str
) -> None:
    path, body = something(client, what)
    with Client(client) as connection:
        connection.send(ask(client, path))
        connection.end()
        answers = io.BytesIO(connection.rest())
    assert reply(answers) == (200, body)
    assert answers.read() == b""
    assert witness.taken_over == 0


@pytest.mark.parametrize("what", WHAT)
def test_client_that_ends_tls_after_its_request_gets_its_answer(
    proxy_client: RegistryClient, witness: Witness, what: str
) -> None:
    path, body = something(proxy_client, what)
    with Client(proxy_client) as connection:
        connection.way.sendall(connection.sealed(ask(proxy_client, path)) + connection.goodbye())
        answers = io.BytesIO(connection.rest())
    assert reply(answers) == (200, body)
    assert answers.read() == b""
    assert witness.taken_over == 0


@pytest.mark.parametrize("how", ["while the answer is awaited", "during the body"])
def test_client_whose_tls_breaks_is_left_and_makes_no_noise(proxy_client: RegistryClient, how: str) -> None:
    client = proxy_client
    image = client.hub.image(client.repo, "1", [random_bytes(LARGE, client.repo)])
    garbage = b"\x17\x03\x03\x00\x20" + bytes(32)
    if how == "while the answer is awaited":
        client.hub.faults.add(Fault(kind="manifest", delay=0.3))
    with Client(client) as connection:
        if how == "during the body":
            connection.send(ask(client, f"blobs/{image.layers[0]}"))
            assert connection.answers.readline() == b"HTTP/1.1 200 OK\r\n"
            connection.way.sendall(garbage)
        else:
            connection.send(ask(client, "manifests/1"))
            wait_until(lambda: client.hub.count(kind="manifest") == 1)
            connection.way.sendall(garbage)
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):  # the alert that tells it why, or just the end
            connection.answers.read()
    assert client.request("GET", "/v2/").status == 401  # and the log has no complaint: see `Program.assert_no_errors`


# -- who else has a say


def test_headers_are_shown_where_the_user_wants_to_see_them(hub: Hub) -> None:
    with running_program(hub, hubcache_workers="1", flow_detail="2") as program:
        witness = Witness(program)
        for name in LISTENERS:
            client = program.client(name)
            image = hub.image(client.repo, "1")
            for _ in range(2):
                assert client.request("GET", f"/v2/{client.repo}/manifests/1", {"X-Mine": "yes"}).body == image.manifest
        wait_until(lambda: witness.log.count("X-Mine: yes") == 4)
        assert witness.taken_over == 4
        assert witness.lines == []


def test_line_is_told_at_once_also_where_the_output_is_a_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with running_program(hub, hubcache_workers="1") as program:
        assert program.client("mirror").manifest("1").status == 404
        wait_until(lambda: "<< 404" in program.log)


def test_nothing_is_shown_where_the_user_wants_to_see_nothing(hub: Hub) -> None:
    with running_program(hub, hubcache_workers="1", flow_detail="0") as program:
        warm(program)
        witness = Witness(program)
        for name in LISTENERS:
            client = program.client(name)
            assert client.manifest("1").status in (401, 404)
        program.stop()  # all that it says is written by then
        assert (witness.taken_over, "GET" in witness.log) == (0, False)


def test_script_that_comes_to_listen_while_the_proxy_runs_hears_of_all(hub: Hub, tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text("")
    with running_program(hub, hubcache_workers="1") as program:
        program.stop()
        program.command += ["-s", str(script)]
        program.start()
        warm(program)
        witness = Witness(program)
        clients = [program.client(name) for name in LISTENERS]
        for client in clients:
            assert client.manifest("1").status in (401, 404)
        assert witness.taken_over == 0
        script.write_text("def request(flow):\n    print('heard of', flow.request.path, flush=True)\n")
        os.utime(script, (2**31, 2**31))  # mitmproxy sees that it is a newer one
        wait_until(lambda: f"Loading script {script}" in witness.log)
        for client in clients:
            assert client.manifest("2").status in (401, 404)
        wait_until(lambda: all(f"heard of /v2/{client.repo}/manifests/2" in witness.log for client in clients))
        assert witness.taken_over == 2


def test_script_that_is_taken_away_leaves_clients_to_us_again(hub: Hub, tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text("def response(flow):\n    print('heard of', flow.request.path, flush=True)\n")
    with running_program(hub, hubcache_workers="1") as program:
        program.stop()
        program.command += ["-s", str(script)]
        program.start()
        warm(program)
        client, witness = program.client("mirror"), Witness(program)
        assert client.manifest("1").status == 404
        wait_until(lambda: f"heard of /v2/{client.repo}/manifests/1" in witness.log)
        script.write_text("")
        os.utime(script, (2**31, 2**31))
        wait_until(lambda: f"Loading script {script}" in witness.log)
        witness = Witness(program)
        assert client.manifest("1").status == 404
        wait_until(lambda: len(witness.lines) == 1)
        assert witness.taken_over == 0


def test_broken_record_behind_a_request_ends_the_connection_and_is_no_defect(
    proxy_client: RegistryClient, program: Program
) -> None:
    proxy_client.hub.image(proxy_client.repo, "1")
    assert proxy_client.manifest("1").status == 200
    with Client(proxy_client) as connection, contextlib.suppress(OSError):
        connection.way.sendall(
            connection.sealed(ask(proxy_client, "manifests/1")) + b"\x17\x03\x03\x00\x20" + bytes(32)
        )
        connection.rest()
    program.assert_no_errors()
