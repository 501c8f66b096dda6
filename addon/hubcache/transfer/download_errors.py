"""The errors of downloads: those of aiohttp, so that they are described and counted as those of all other requests."""

import errno
import http.client
import ssl
from typing import NamedTuple

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..decide.outbound_proxy import OutboundProxy


class Route(NamedTuple):
    """What two requests must have in common to share a connection; see `DownloadSession.get`."""

    scheme: str
    host: str
    port: int
    proxy: OutboundProxy | None
    guarded: bool
    named_by_client: bool

    @property
    def key(self) -> ConnectionKey:
        """What aiohttp's errors say about a connection."""
        return ConnectionKey(self.host, self.port, self.scheme == "https", True, None, None, None)


class ProxyRefused(http.client.HTTPException):
    """An outbound proxy answered a CONNECT with another `status` than 200."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def connection_error(error: OSError, route: Route) -> aiohttp.ClientConnectorError:
    """Return the error for a host, or an outbound proxy, to which no connection could be made."""
    kind = aiohttp.ClientProxyConnectionError if route.proxy is not None else aiohttp.ClientConnectorError
    return kind(route.key, error)


def handshake_error(error: OSError | http.client.HTTPException, route: Route) -> aiohttp.ClientError:
    """Return the error for a connection on which TLS, or a CONNECT, failed."""
    match error:
        case ssl.SSLCertVerificationError():
            return aiohttp.ClientConnectorCertificateError(route.key, error)
        case ssl.SSLError():
            return aiohttp.ClientConnectorSSLError(route.key, error)
        case ProxyRefused():
            return aiohttp.ClientHttpProxyError(_request_info(URL()), (), status=error.status)
        case OSError():
            return connection_error(error, route)
    return connection_error(OSError(errno.EPROTO, "not HTTP"), route)


def request_error(error: OSError | http.client.HTTPException, url: URL) -> aiohttp.ClientError:
    """Return the error for a request without a response."""
    match error:
        case TimeoutError():
            return aiohttp.SocketTimeoutError("no response")
        case http.client.RemoteDisconnected():
            return aiohttp.ServerDisconnectedError()
        case OSError():
            return aiohttp.ClientOSError(error.errno, error.strerror)
    return aiohttp.ClientResponseError(_request_info(url), ())


def _request_info(url: URL) -> aiohttp.RequestInfo:
    return aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
