"""Sends the requests of downloads, and reads their bodies, in threads: see `download_connection`.

Names are resolved and sockets connected in the event loop. Errors are those of aiohttp, so that they are described and
counted as those of all other requests.
"""

import asyncio
import errno
import functools
import http.client
import socket
import ssl
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import aiohappyeyeballs
import aiohttp
from yarl import URL

from ..decide.outbound_proxy import OutboundProxy
from ..oci.address import is_local_address
from .connector import REFUSED_ADDRESS
from .download_connection import DownloadConnection
from .download_errors import ProxyRefused, Route, connection_error, handshake_error, request_error
from .download_response import DownloadResponse
from .fill_slots import MAX_FILLS
from .lookups import Lookups

_IDLE_SECONDS = 15.0
"""How long an unused connection is kept, as by aiohttp."""
_HAPPY_EYEBALLS_SECONDS = 0.25
"""RFC 8305 section 5: the connection attempt delay."""


class DownloadSession:
    """The connections of all downloads. At most `MAX_FILLS` threads are used, one for each running fill."""

    def __init__(self, tls: ssl.SSLContext, user_agent: str, connect_seconds: float, progress_seconds: float) -> None:
        """Time-outs are in seconds; see `session`."""
        self._tls = tls
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}
        self._connect_seconds = connect_seconds
        self._progress_seconds = progress_seconds
        self._threads = ThreadPoolExecutor(MAX_FILLS, thread_name_prefix="download")
        self._lookups = Lookups(asyncio.get_running_loop())
        self._idle: defaultdict[Route, list[DownloadConnection]] = defaultdict(list)
        self.closed = False

    def close(self) -> None:
        """Close all idle connections; those that are in use are closed by their users."""
        self.closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        self._lookups.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(
        self,
        url: URL,
        headers: Mapping[str, str],
        *,
        proxy: OutboundProxy | None = None,
        guarded: bool = False,
        named_by_client: bool = False,
    ) -> DownloadResponse:
        """Send a GET, and return the response once its head has arrived.

        `guarded` refuses local addresses, and `named_by_client` says that a client chose the host; see `session`.
        Raises `aiohttp.ClientError` and `TimeoutError`.
        """
        host = url.raw_host or ""
        route = Route(url.scheme, host, url.port or 0, proxy, guarded, named_by_client)
        target, headers = url.raw_path_qs, {"Host": url.host_port_subcomponent or host} | self._headers | dict(headers)
        if proxy is not None and url.scheme == "http":  # RFC 9112 section 3.2.2
            target = str(url.with_user(None).with_fragment(None))
            headers |= _credentials(proxy)
        while (connection := self._take_idle(route)) is not None:
            try:
                return await self._send(url, route, connection, target, headers)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                pass  # the server has closed the connection meanwhile
        return await self._send(url, route, await self._connect(route), target, headers)

    def _take_idle(self, route: Route) -> DownloadConnection | None:
        now = asyncio.get_running_loop().time()
        connections = self._idle[route]
        while connections:
            connection = connections.pop()
            if now - connection.idle_since < _IDLE_SECONDS and connection.is_quiet:
                return connection
            connection.close()
        del self._idle[route]
        return None

    async def _send(
        self, url: URL, route: Route, connection: DownloadConnection, target: str, headers: dict[str, str]
    ) -> DownloadResponse:
        def send() -> tuple[http.client.HTTPResponse, bytes]:
            response = connection.send("GET", target, headers)
            return response, b"" if response.status in (200, 206) else connection.discard(response)

        with ExitStack() as stack:
            stack.callback(connection.close)
            try:
                response, discarded = await self._run(connection, send)
            except (OSError, http.client.HTTPException) as error:
                raise request_error(error, url) from error
            stack.pop_all()
        return DownloadResponse(
            url,
            response,
            discarded,
            lambda consume: self._run(connection, functools.partial(connection.receive, response, consume)),
            lambda: self._release(route, connection, response),
        )

    def _release(self, route: Route, connection: DownloadConnection, response: http.client.HTTPResponse) -> None:
        if not connection.end(response) or self.closed:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle[route].append(connection)
        asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._expire, route, connection, connection.idle_since)

    def _expire(self, route: Route, connection: DownloadConnection, idle_since: float) -> None:
        """Close a connection that was not used since then."""
        if connection.idle_since == idle_since and connection in self._idle.get(route, ()):
            self._idle[route].remove(connection)
            if not self._idle[route]:
                del self._idle[route]
            connection.close()

    async def _run[Value](self, connection: DownloadConnection, work: Callable[[], Value]) -> Value:
        """Run `work` in a thread. When this is cancelled, the connection is aborted, and the thread waited for: it must
        not use the descriptor, or the file that it writes to, after they are closed."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            connection.abort()
            while not running.done():
                with suppress(asyncio.CancelledError):  # a second cancellation
                    await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # mark it as retrieved
            raise

    # -- connecting -------------------------------------------------------------------------------------------------

    async def _connect(self, route: Route) -> DownloadConnection:
        first = route.proxy or route
        addresses = await self._resolve(route, first.host, first.port)
        try:
            async with asyncio.timeout(self._connect_seconds):
                sock = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS, interleave=1
                )
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("connection timed out") from error
        except OSError as error:
            raise connection_error(error, route) from error
        connection = DownloadConnection(sock, self._progress_seconds)
        with ExitStack() as stack:
            stack.callback(connection.close)
            try:
                await self._run(connection, functools.partial(self._prepare, connection, route))
            except TimeoutError as error:
                raise aiohttp.ConnectionTimeoutError("connection timed out") from error
            except (OSError, http.client.HTTPException) as error:
                raise handshake_error(error, route) from error
            stack.pop_all()
        return connection

    async def _resolve(self, route: Route, host: str, port: int) -> list[Any]:
        """Return the addresses of a host; raises `ClientConnectorError` if it has local ones only and is guarded."""
        loop = asyncio.get_running_loop()
        lookup = self._lookups.getaddrinfo if route.named_by_client else loop.getaddrinfo
        try:
            async with asyncio.timeout(2 * self._connect_seconds if route.named_by_client else None):
                found = await lookup(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("name resolution timed out") from error
        except OSError as error:
            raise aiohttp.ClientConnectorDNSError(route.key, error) from error
        allowed = [each for each in found if not (route.guarded and is_local_address(str(each[4][0])))]
        if not allowed:
            raise aiohttp.ClientConnectorError(route.key, OSError(errno.EACCES, REFUSED_ADDRESS))
        return allowed

    def _prepare(self, connection: DownloadConnection, route: Route) -> None:
        """Set up the tunnel and TLS, in a thread."""
        proxy = route.proxy
        if proxy is not None and proxy.scheme == "https":
            connection.secure(self._tls, proxy.host, self._connect_seconds)
        if route.scheme != "https":
            return
        if proxy is not None:
            host = f"[{route.host}]" if ":" in route.host else route.host
            status = connection.connect(f"{host}:{route.port}", _credentials(proxy))
            if status != http.client.OK:
                raise ProxyRefused(status)
        connection.secure(self._tls, route.host.rstrip("."), self._connect_seconds)


def _credentials(proxy: OutboundProxy) -> dict[str, str]:
    return {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
