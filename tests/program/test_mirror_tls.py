"""TLS at the mirror's port: advice in the log without a certificate, and HTTPS with `hubcache_mirror_certificate`."""

import os
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http_client import Exchange, head, wait_until
from support.program import ACCEPT, HUB_HOST, Program, running_program
from support.standin import random_bytes
from support.standin import tls as certificates

LINE = "127.0.0.1 speaks TLS to the mirror's plain port: use http:// or set insecure for this mirror"


@pytest.fixture(params=["0", "2"], ids=["direct", "mitmproxy"])
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    """A program with direct connections, and one in which mitmproxy serves all clients."""
    with running_program(flow_detail=request.param) as running:
        yield running


def connect_with_tls(program: Program, trust: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", program.mirror), 30)
    try:
        return trust.wrap_socket(connection, server_hostname=name)
    except BaseException:
        connection.close()
        raise


def test_clients_that_verify_are_logged_in_one_line(program: Program) -> None:
    for trust in (ssl.create_default_context(), program.ssl_context(), program.ssl_context()):
        with pytest.raises(ssl.SSLCertVerificationError):
            connect_with_tls(program, trust)
    program.wait_for_log(LINE)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect_with_tls(program, program.ssl_context())
    assert program.client("mirror").request("GET", "/v2/").status == 200
    assert program.log.count(LINE) == 1
    assert "TLS handshake failed" not in program.log
    assert "trust the proxy's certificate" not in program.log


def test_client_that_does_not_verify_is_served(program: Program) -> None:
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    with connect_with_tls(program, trust) as connection:
        connection.sendall(head("GET", "/v2/", {"Host": HUB_HOST, "Connection": "close"}))
        assert Exchange(connection, "GET").finish().status == 200
    assert LINE not in program.log


# -- with a certificate


@pytest.fixture(params=[("0", "1"), ("0", "2"), ("2", "1")], ids=["direct", "workers", "mitmproxy"])
def secure(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Program, ssl.SSLContext]]:
    """A program with a certificate for "localhost", and a TLS context of clients that trust it."""
    flow_detail, workers = request.param
    trusted, _ = certificates.make(tmp_path, ["localhost"])
    own = {"hubcache_mirror_certificate": str(tmp_path / "standin.pem"), "hubcache_workers": workers}
    with running_program(flow_detail=flow_detail, **own) as running:
        yield running, ssl.create_default_context(cafile=str(trusted))


def test_mirror_with_a_certificate_serves_tls_and_plain_http(secure: tuple[Program, ssl.SSLContext]) -> None:
    program, trust = secure
    repo, layer = "library/secure", random_bytes(2_000_000, "secure")
    image = program.hub.image(repo, "1", [layer])
    blob = f"/v2/{repo}/blobs/{image.layers[0]}"
    for _ in range(2):  # not stored, then stored
        with connect_with_tls(program, trust) as connection:
            assert connection.version() == "TLSv1.3"
            connection.sendall(head("GET", f"/v2/{repo}/manifests/1", {"Host": "localhost"} | ACCEPT))
            assert Exchange(connection, "GET").finish().body == image.manifest
            connection.sendall(head("GET", blob, {"Host": "localhost"}))
            assert Exchange(connection, "GET").finish().body == layer
    plain = program.client("mirror")
    assert plain.manifest("1", repo=repo).body == image.manifest
    assert plain.blob(image.layers[0], repo=repo).body == layer


def test_request_that_mitmproxy_answers_follows_another_in_the_same_tls(
    secure: tuple[Program, ssl.SSLContext],
) -> None:
    program, trust = secure
    image = program.hub.image("library/handed", "1", [b"layer"])
    with connect_with_tls(program, trust) as connection:
        for more in ({}, {"TE": "trailers"}, {}):
            connection.sendall(head("GET", "/v2/library/handed/manifests/1", {"Host": "localhost"} | ACCEPT | more))
            assert Exchange(connection, "GET").finish().body == image.manifest
    with connect_with_tls(program, trust) as connection:
        connection.sendall(
            head("POST", "/v2/library/handed/blobs/uploads/", {"Host": "localhost", "Content-Length": "0"})
        )
        over_tls = Exchange(connection, "POST").finish().status
    assert over_tls == program.client("mirror").request("POST", "/v2/library/handed/blobs/uploads/").status


def test_client_that_does_not_trust_the_certificate_is_logged(secure: tuple[Program, ssl.SSLContext]) -> None:
    program, _ = secure
    with pytest.raises(ssl.SSLCertVerificationError):
        connect_with_tls(program, ssl.create_default_context())
    wait_until(lambda: "certificate" in program.log.partition("CA certificate")[2])
    assert LINE not in program.log
    assert program.client("mirror").request("GET", "/v2/").status == 200


def test_sighup_reads_the_certificate_again(secure: tuple[Program, ssl.SSLContext], tmp_path: Path) -> None:
    program, trust = secure
    program.wait_for_log("of 50.0g used")  # the end of the start: all workers have read the file
    (tmp_path / "new").mkdir()
    trusted, _ = certificates.make(tmp_path / "new", ["localhost"])
    pem = tmp_path / "standin.pem"
    pem.write_text("nothing")
    os.kill(program.pid, signal.SIGHUP)
    program.wait_for_log(f"SIGHUP: nothing changed: hubcache_mirror_certificate: {pem} is not a PEM file")
    connect_with_tls(program, trust).close()
    shutil.copy(tmp_path / "new" / "standin.pem", pem)
    os.kill(program.pid, signal.SIGHUP)
    wait_until(lambda: is_trusted(program, ssl.create_default_context(cafile=str(trusted))))


def is_trusted(program: Program, trust: ssl.SSLContext) -> bool:
    try:
        connect_with_tls(program, trust).close()
    except ssl.SSLCertVerificationError:
        return False
    return True
