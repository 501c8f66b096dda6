"""Sends the cache's own requests through outbound proxies: arguments for aiohttp, checks and errors."""

from collections.abc import Mapping
from typing import Any

import aiohttp
from yarl import URL

from ..decide.outbound_proxy import OutboundProxies, OutboundProxy
from ..oci.address import is_local_host
from ..oci.errors import BadUpstream
from .connector import REFUSED_ADDRESS
from .session import CONNECT_SECONDS, PROGRESS_SECONDS

_TIMEOUT = aiohttp.ClientTimeout(
    total=None, connect=CONNECT_SECONDS + PROGRESS_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=PROGRESS_SECONDS
)
"""The time-outs of `open_session`, and a limit for the response to a CONNECT, for which aiohttp has none."""


def proxy_arguments(proxies: OutboundProxies, url: URL, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `ClientSession.request` for the headers and the outbound proxy of a request.

    The proxy's credentials are sent to the proxy only: with the CONNECT for an https URL, else with the request.
    """
    proxy = proxies.find(url.scheme, url.host or "", url.port)
    if proxy is None:
        return {"headers": headers}
    at = URL.build(scheme=proxy.scheme, host=proxy.host, port=proxy.port)
    credentials = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
    if url.scheme == "https":
        return {"headers": headers, "proxy": at, "proxy_headers": credentials, "timeout": _TIMEOUT}
    return {"headers": {**headers, **credentials}, "proxy": at, "timeout": _TIMEOUT}


def check_target(url: URL, named_by: URL) -> None:
    """Raise `BadUpstream` for a local address that a registry named, unless it has one itself.

    Addresses of host names cannot be checked here: the outbound proxy resolves them, and perhaps differently from this
    machine.
    """
    if url.origin() != named_by.origin() and is_local_host(url.host or "") and not is_local_host(named_by.host or ""):
        raise BadUpstream(f"upstream names {REFUSED_ADDRESS}", {"host": url.host})


def failure_of_proxy(proxy: OutboundProxy, error: aiohttp.ClientError | TimeoutError) -> str | None:
    """Return the description of an error of the outbound proxy itself; None for other errors."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"outbound proxy {proxy} answered {error.status}"
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientConnectorDNSError):
        return f"outbound proxy {proxy} cannot be reached"
    return None
