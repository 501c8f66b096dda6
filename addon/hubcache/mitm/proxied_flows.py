"""Has mitmproxy connect through an outbound proxy for single flows."""

import secrets

from mitmproxy import http
from mitmproxy.connection import Server

from ..decide.outbound_proxy import OutboundProxy
from . import credentials

_VIA = f"1.1 hubcache-{secrets.token_hex(4)}"
"""This process in `Via` (RFC 9110 section 7.6.3), which shows that a request came back from the outbound proxy."""


def has_passed(request: http.Request) -> bool:
    """Whether this process has sent the request to an outbound proxy before."""
    return _VIA in request.headers.get("via", "")


def connect_directly(flow: http.HTTPFlow) -> None:
    """Send a flow's request without an outbound proxy, also in the mode `upstream:`."""
    if flow.server_conn.via is not None:
        flow.server_conn = Server(address=None)


def connect_through(flow: http.HTTPFlow, proxy: OutboundProxy) -> None:
    """Send a flow's request through the outbound proxy, in a tunnel or, with http, in absolute form (RFC 9112 section
    3.2.2): many proxies permit tunnels to port 443 only."""
    request = flow.request
    if request.scheme == "https" or proxy.scheme == "https" or request.is_http2:
        flow.server_conn = Server(address=(request.host, request.port))
        flow.server_conn.via = (proxy.scheme, proxy.address)
        return
    connect_directly(flow)
    host = f"[{request.host}]" if ":" in request.host else request.host
    request.authority = host if request.port == 80 else f"{host}:{request.port}"
    request.data.host, request.data.port = proxy.address
    _add_headers(request, proxy)


def show_target(flow: http.HTTPFlow, target: tuple[str, int]) -> None:
    """Have a flow show its own host and port again, after its request was sent in absolute form."""
    flow.request.data.host, flow.request.data.port = target


def authenticate_connect(connect: http.HTTPFlow, proxy: OutboundProxy) -> None:
    """Add the credentials to the CONNECT that mitmproxy sends to the outbound proxy."""
    _add_headers(connect.request, proxy)


def _add_headers(request: http.Request, proxy: OutboundProxy) -> None:
    request.headers.add("Via", _VIA)
    if proxy.authorization is not None:
        credentials.add_secret(request, "Proxy-Authorization", proxy.authorization)
