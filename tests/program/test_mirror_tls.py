"""A client that speaks TLS to the mirror's plain port is told of in words that help."""

import socket
import ssl
from collections.abc import Iterator

import pytest
from support import program
from support.http_client import Exchange, head
from support.program import HUB_HOST, Rig

LINE = "127.0.0.1 speaks TLS to the mirror's plain port: use http:// or set insecure for this mirror"


@pytest.fixture(params=["0", "2"], ids=["ours", "mitmproxy's"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """With clients that are received without mitmproxy, and with mitmproxy doing all of it."""
    with program.running(flow_detail=request.param) as running:
        yield running


def strangers(rig: Rig, trust: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", rig.product.mirror), 30)
    try:
        return trust.wrap_socket(connection, server_hostname=name)
    except BaseException:
        connection.close()
        raise


def test_client_that_verifies_is_told_of_once_in_a_while(rig: Rig) -> None:
    for trust in (ssl.create_default_context(), rig.product.trust(), rig.product.trust()):
        with pytest.raises(ssl.SSLCertVerificationError):
            strangers(rig, trust)
    rig.product.wait_for_log(LINE)
    with pytest.raises(ssl.SSLCertVerificationError):
        strangers(rig, rig.product.trust())
    assert rig.door("mirror").request("GET", "/v2/").status == 200
    assert rig.product.log.count(LINE) == 1
    assert "TLS handshake failed" not in rig.product.log
    assert "trust the proxy's certificate" not in rig.product.log


def test_client_that_does_not_verify_is_served(rig: Rig) -> None:
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    with strangers(rig, trust) as connection:
        connection.sendall(head("GET", "/v2/", {"Host": HUB_HOST, "Connection": "close"}))
        assert Exchange(connection, "GET").finish().status == 200
    assert LINE not in rig.product.log
