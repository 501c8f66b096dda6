"""Clients are answered without mitmproxy: what they get, what is said of it, and how it ends."""

import contextlib
import io
import os
import re
import ssl
from pathlib import Path

import pytest
from support import program
from support.http_client import Exchange, head, wait_until
from support.program import HUB_HOST, TOKEN_HOST, Door, Rig
from support.standin import Fault, Hub, random_bytes
from support.tls_client import Client, Witness, ask, proxy_door_fixture, reply, warm, witness_fixture

LARGE = 3_000_000

rig, door = program.fixtures(warm, hubcache_workers="1", hubcache_tag_ttl="600")
proxy_door = proxy_door_fixture()
witness = witness_fixture()
# -- answers


def test_pull_never_reaches_mitmproxy(door: Door, witness: Witness) -> None:
    layers = [random_bytes(LARGE, door.repo), door.repo.encode()]
    image = door.hub.image(door.repo, "1", layers)
    for _ in range(2):  # cold and warm
        assert door.manifest("1", method="HEAD").status == 200
        assert door.manifest("1").body == image.manifest
        assert [door.blob(digest).body for digest in image.layers] == layers
        assert door.blob(image.layers[0], {"Range": "bytes=5-1000004"}).body == layers[0][5:1_000_005]
        assert door.manifest("none").failure == (404, "MANIFEST_UNKNOWN")
        door.settle()
    assert door.request("GET", "/v2/").status in (200, 401)
    wait_until(lambda: len(witness.lines) == 13)
    assert witness.taken_over == 0


def test_token_is_given_without_mitmproxy(proxy_door: Door, witness: Witness) -> None:
    assert proxy_door.token("repository:library/app:pull")
    wait_until(lambda: f"GET https://{TOKEN_HOST}/token?service=" in witness.log)
    assert witness.taken_over == 0


def test_answer_is_told_in_one_line(door: Door, witness: Witness) -> None:
    image = door.hub.image(door.repo, "1", [random_bytes(LARGE, door.repo)])
    urls = [
        f"/v2/{door.repo}/{path}" for path in ("manifests/1?ns=docker.io", f"blobs/{image.layers[0]}", "manifests/2")
    ]
    expected = []
    for url, result in zip(urls, ("200 miss 5..b", "200 miss 2.9m", "404 error ...b"), strict=True):
        with door.connect() as connection:
            host, port = connection.getsockname()
            connection.sendall(head("GET", url, {"Host": "elsewhere.example"}))
            Exchange(connection, "GET").finish()
        expected.append(re.escape(f"{host}:{port}: GET https://{HUB_HOST}{url} << ") + result)
    wait_until(lambda: len(witness.lines) == 3)
    for line, pattern in zip(witness.lines, expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_credentials_are_never_told(door: Door, rig: Rig, witness: Witness) -> None:
    door.hub.image(door.repo, "1")
    secrets = {"Authorization": "Bearer my-password", "Cookie": "session=my-password", "X-Key": "my-password"}
    for path in ("/v2/", f"/v2/{door.repo}/manifests/1", "/v2/x/", f"/v2/{door.repo}/manifests/none"):
        door.request("GET", path, secrets)
    wait_until(lambda: len(witness.lines) >= 2)
    assert "my-password" not in rig.product.log


def test_kept_connection_gets_many_answers(door: Door, witness: Witness) -> None:
    image = door.hub.image(door.repo, "1", [random_bytes(LARGE, door.repo)])
    with door.connect() as kept:
        for _ in range(10):
            for path, expected in (
                ("manifests/1", (200, image.manifest)),
                (f"blobs/{image.layers[0]}", (200, random_bytes(LARGE, door.repo))),
            ):
                kept.sendall(ask(door, path, Connection="keep-alive"))
                assert reply(kept.makefile("rb")) == expected
    wait_until(lambda: len(witness.lines) == 20)
    assert witness.taken_over == 0


@pytest.mark.parametrize("is_warm", [True, False])
def test_requests_that_are_sent_at_once_are_answered_in_order(door: Door, witness: Witness, is_warm: bool) -> None:
    data = random_bytes(LARGE, door.repo)
    image = door.hub.image(door.repo, "1", [data, door.repo.encode()])
    wanted = [
        ("manifests/1", "GET", (200, image.manifest)),
        (f"blobs/{image.layers[0]}", "GET", (200, data)),
        ("manifests/1", "HEAD", (200, b"")),
        (f"blobs/{image.layers[0]}", "HEAD", (200, b"")),
        (f"blobs/{image.layers[1]}", "GET", (200, door.repo.encode())),
        ("manifests/1", "GET", (200, image.manifest)),
    ] * 3
    if is_warm:
        for path in ("manifests/1", *(f"blobs/{digest}" for digest in image.layers)):
            door.request("GET", f"/v2/{door.repo}/{path}")
        door.settle()
    with door.connect() as kept:
        kept.sendall(b"".join(ask(door, path, method) for path, method, _ in wanted))
        answers = kept.makefile("rb")
        for _, method, expected in wanted:
            assert reply(answers, method) == expected
    assert witness.taken_over == 0


def test_head_gets_the_length_of_a_body_and_none(door: Door, witness: Witness) -> None:
    image = door.hub.image(door.repo, "1", [b"layer"])
    for path, length in (("manifests/1", len(image.manifest)), (f"blobs/{image.layers[0]}", 5), ("manifests/2", None)):
        with Client(door) as client:
            client.send(ask(door, path, "HEAD", Connection="close"))
            fields, end, body = client.rest().partition(b"\r\n\r\n")
        assert (end, body) == (b"\r\n\r\n", b"")
        assert length is None or b"Content-Length: %d" % length in fields.split(b"\r\n")
    assert witness.taken_over == 0


@pytest.mark.parametrize("path", ["manifests/1", "manifests/none", "blobs"])
def test_connection_is_closed_where_the_client_wants_it(door: Door, witness: Witness, path: str) -> None:
    image = door.hub.image(door.repo, "1", [random_bytes(LARGE, door.repo)])
    path = f"blobs/{image.layers[0]}" if path == "blobs" else path
    with Client(door) as client:
        client.send(ask(door, path, Connection="close") + ask(door, "manifests/1"))
        answers = io.BytesIO(client.rest())
    assert reply(answers)[0] in (200, 404)
    assert answers.read() == b""
    assert witness.taken_over == 0


def test_tls_1_2_is_spoken_too(proxy_door: Door, witness: Witness) -> None:
    data = random_bytes(LARGE, proxy_door.repo)
    digest = proxy_door.hub.blob(proxy_door.repo, data)
    trust = proxy_door.product.trust()
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    tunnel = proxy_door.product.tunnel(HUB_HOST, 443)
    with trust.wrap_socket(tunnel, server_hostname=HUB_HOST) as client:
        assert client.version() == "TLSv1.2"
        for _ in range(2):
            client.sendall(ask(proxy_door, f"blobs/{digest}"))
            assert reply(client.makefile("rb")) == (200, data)
    assert witness.taken_over == 0


def test_first_client_of_a_host_is_mitmproxys_which_makes_the_certificate(hub: Hub) -> None:
    with program.running(hub, hubcache_workers="1") as rig:
        door, witness = rig.door("proxy"), Witness(rig.product)
        for _ in range(3):
            assert door.request("GET", "/v2/").status == 401
        wait_until(lambda: len(witness.lines) == 2)
        assert witness.taken_over == 1


# -- ends

WHAT = ["cold manifest", "warm manifest", "cold blob", "warm blob"]


def something(door: Door, what: str) -> tuple[str, bytes]:
    """Path and body of something that is asked for, which is in the store when it is warm."""
    data = random_bytes(LARGE, door.repo)
    image = door.hub.image(door.repo, "1", [data])
    path, body = ("manifests/1", image.manifest) if "manifest" in what else (f"blobs/{image.layers[0]}", data)
    if "warm" in what:
        door.request("GET", f"/v2/{door.repo}/{path}")
        door.settle()
    return path, body


@pytest.mark.parametrize("what", WHAT)
def test_client_that_says_no_more_gets_its_answer_and_then_the_end(door: Door, witness: Witness, what: str) -> None:
    path, body = something(door, what)
    with Client(door) as client:
        client.send(ask(door, path))
        client.end()
        answers = io.BytesIO(client.rest())
    assert reply(answers) == (200, body)
    assert answers.read() == b""
    assert witness.taken_over == 0


@pytest.mark.parametrize("what", WHAT)
def test_client_that_ends_tls_after_its_request_gets_its_answer(proxy_door: Door, witness: Witness, what: str) -> None:
    path, body = something(proxy_door, what)
    with Client(proxy_door) as client:
        client.way.sendall(client.sealed(ask(proxy_door, path)) + client.goodbye())
        answers = io.BytesIO(client.rest())
    assert reply(answers) == (200, body)
    assert answers.read() == b""
    assert witness.taken_over == 0


@pytest.mark.parametrize("how", ["while the answer is awaited", "during the body"])
def test_client_whose_tls_breaks_is_left_and_makes_no_noise(proxy_door: Door, how: str) -> None:
    door = proxy_door
    image = door.hub.image(door.repo, "1", [random_bytes(LARGE, door.repo)])
    garbage = b"\x17\x03\x03\x00\x20" + bytes(32)
    if how == "while the answer is awaited":
        door.hub.faults.add(Fault(kind="manifest", delay=0.3))
    with Client(door) as client:
        if how == "during the body":
            client.send(ask(door, f"blobs/{image.layers[0]}"))
            assert client.answers.readline() == b"HTTP/1.1 200 OK\r\n"
            client.way.sendall(garbage)
        else:
            client.send(ask(door, "manifests/1"))
            wait_until(lambda: door.hub.count(kind="manifest") == 1)
            client.way.sendall(garbage)
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):  # the alert that tells it why, or just the end
            client.answers.read()
    assert door.request("GET", "/v2/").status == 401  # and the log has no complaint: see `Rig.check`


# -- who else has a say


def test_headers_are_shown_where_the_user_wants_to_see_them(hub: Hub) -> None:
    with program.running(hub, hubcache_workers="1", flow_detail="2") as rig:
        witness = Witness(rig.product)
        for name in program.DOORS:
            door = rig.door(name)
            image = hub.image(door.repo, "1")
            for _ in range(2):
                assert door.request("GET", f"/v2/{door.repo}/manifests/1", {"X-Mine": "yes"}).body == image.manifest
        wait_until(lambda: witness.log.count("X-Mine: yes") == 4)
        assert witness.taken_over == 4
        assert witness.lines == []


def test_line_is_told_at_once_also_where_the_output_is_a_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with program.running(hub, hubcache_workers="1") as rig:
        assert rig.door("mirror").manifest("1").status == 404
        wait_until(lambda: "<< 404" in rig.product.log)


def test_nothing_is_shown_where_the_user_wants_to_see_nothing(hub: Hub) -> None:
    with program.running(hub, hubcache_workers="1", flow_detail="0") as rig:
        warm(rig)
        witness = Witness(rig.product)
        for name in program.DOORS:
            door = rig.door(name)
            assert door.manifest("1").status in (401, 404)
        rig.product.stop()  # all that it says is written by then
        assert (witness.taken_over, "GET" in witness.log) == (0, False)


def test_script_that_comes_to_listen_while_the_proxy_runs_hears_of_all(hub: Hub, tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text("")
    with program.running(hub, hubcache_workers="1") as rig:
        rig.product.stop()
        rig.product.command += ["-s", str(script)]
        rig.product.start()
        warm(rig)
        witness = Witness(rig.product)
        doors = [rig.door(name) for name in program.DOORS]
        for door in doors:
            assert door.manifest("1").status in (401, 404)
        assert witness.taken_over == 0
        script.write_text("def request(flow):\n    print('heard of', flow.request.path, flush=True)\n")
        os.utime(script, (2**31, 2**31))  # mitmproxy sees that it is a newer one
        wait_until(lambda: f"Loading script {script}" in witness.log)
        for door in doors:
            assert door.manifest("2").status in (401, 404)
        wait_until(lambda: all(f"heard of /v2/{door.repo}/manifests/2" in witness.log for door in doors))
        assert witness.taken_over == 2


def test_script_that_is_taken_away_leaves_clients_to_us_again(hub: Hub, tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text("def response(flow):\n    print('heard of', flow.request.path, flush=True)\n")
    with program.running(hub, hubcache_workers="1") as rig:
        rig.product.stop()
        rig.product.command += ["-s", str(script)]
        rig.product.start()
        warm(rig)
        door, witness = rig.door("mirror"), Witness(rig.product)
        assert door.manifest("1").status == 404
        wait_until(lambda: f"heard of /v2/{door.repo}/manifests/1" in witness.log)
        script.write_text("")
        os.utime(script, (2**31, 2**31))
        wait_until(lambda: f"Loading script {script}" in witness.log)
        witness = Witness(rig.product)
        assert door.manifest("1").status == 404
        wait_until(lambda: len(witness.lines) == 1)
        assert witness.taken_over == 0


def test_broken_record_behind_a_request_ends_the_connection_and_is_no_defect(proxy_door: Door, rig: Rig) -> None:
    proxy_door.hub.image(proxy_door.repo, "1")
    assert proxy_door.manifest("1").status == 200
    with Client(proxy_door) as client, contextlib.suppress(OSError):
        client.way.sendall(client.sealed(ask(proxy_door, "manifests/1")) + b"\x17\x03\x03\x00\x20" + bytes(32))
        client.rest()
    rig.check()
