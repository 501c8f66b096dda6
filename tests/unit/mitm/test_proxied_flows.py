"""Flows that go through an outbound proxy, and credentials that they do not show."""

import pytest
from hubcache.decide.outbound_proxy import OutboundProxy
from hubcache.mitm import credentials
from hubcache.mitm.proxied_flows import connect_directly, connect_through, show_target
from mitmproxy.http import HTTPFlow
from mitmproxy.net.http import http1
from support.mitm import tflow

PROXY = OutboundProxy("http", "proxy", 3128, "Basic secret")


def flow_to(url: str) -> HTTPFlow:
    flow = tflow.tflow()
    flow.request.url = url
    return flow


def head_of(flow: HTTPFlow) -> bytes:
    return bytes(http1.assemble_request_head(flow.request))


def test_https_request_goes_through_a_tunnel_and_has_no_credentials_of_the_proxy() -> None:
    flow = flow_to("https://registry.example/v2/")
    connect_through(flow, PROXY)
    assert flow.server_conn.via == ("http", ("proxy", 3128))
    assert (flow.request.host, flow.request.port) == ("registry.example", 443)
    assert b"secret" not in head_of(flow)
    connect_directly(flow)
    assert flow.server_conn.via is None


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://registry.example/v2/", b"http://registry.example/v2/"),
        ("http://registry.example:5000/v2/", b"http://registry.example:5000/v2/"),
        ("http://[fd00::2]:5000/v2/", b"http://[fd00::2]:5000/v2/"),
    ],
)
def test_http_request_goes_to_the_proxy_in_absolute_form(url: str, target: bytes) -> None:
    flow = flow_to(url)
    credentials.send(flow.request, "Basic of-the-client")
    asked = flow.request.host, flow.request.port
    connect_through(flow, PROXY)
    assert flow.server_conn.via is None
    assert (flow.request.host, flow.request.port) == ("proxy", 3128)
    flow.request.headers["Proxy-Authorization"] = "Basic secret"  # as mitmproxy's `upstream_auth` does
    head = head_of(flow)
    assert head.startswith(b"GET " + target + b" HTTP/1.1\r\n")
    assert head.count(b"Proxy-Authorization: Basic secret\r\n") == 1
    assert head.count(b"Authorization: Basic of-the-client\r\n") == 1
    assert "secret" not in str(flow.request.get_state())
    show_target(flow, asked)
    assert (flow.request.host, flow.request.port) == asked


def test_http_request_to_a_proxy_with_tls_goes_through_a_tunnel() -> None:
    flow = flow_to("http://registry.example/v2/")
    connect_through(flow, OutboundProxy("https", "proxy", 443))
    assert flow.server_conn.via == ("https", ("proxy", 443))
