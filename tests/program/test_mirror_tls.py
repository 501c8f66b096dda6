"""A client that speaks TLS to the mirror's plain port gets a log line with advice."""

import socket
import ssl
from collections.abc import Iterator

import pytest
from support.http_client import Exchange, head
from support.program import HUB_HOST, Program, running_program

LINE = "127.0.0.1 speaks TLS to the mirror's plain port: use http:// or set insecure for this mirror"


@pytest.fixture(params=["0", "2"], ids=["direct", "mitmproxy"])
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    """With direct connections, and with mitmproxy serving all clients."""
    with running_program(flow_detail=request.param) as running:
        yield running


def connect_with_tls(program: Program, trust: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", program.mirror), 30)
    try:
        return trust.wrap_socket(connection, server_hostname=name)
    except BaseException:
        connection.close()
        raise


def test_client_that_verifies_is_logged_once_in_a_while(program: Program) -> None:
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
