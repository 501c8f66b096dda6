"""Requests to the other nodes of the fleet.

Bodies are received in a thread, as those of registries are. Nodes are reached directly, without an outbound proxy, and
may have local addresses.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

import aiohttp
from yarl import URL

from ..oci.digest import Digest
from ..oci.errors import HubcacheError
from ..transfer.download_response import Consume, DownloadResponse
from ..transfer.download_session import DownloadSession
from ..transfer.upstream_response import content_length, content_range

CONNECT_SECONDS = 2.0
"""Longest time to connect to a node. It is near: one that takes longer is not reachable."""

STALL_SECONDS = 5.0
"""Longest wait for the head of a response, and for each next byte of a body."""

LONGEST_WAIT_SECONDS = 10.0
"""A node that holds a lease answers after this time, although it has not released it."""

_EVENT_SECONDS = 2.0
"""Longest duration of a request that reports an event."""

_MAX_CONNECTIONS = 100
"""Connections for events, and as many for waits; further requests wait for one within their time limit."""


class PeerUnavailable(HubcacheError):
    """Another node does not answer, or refuses the request."""


class PeerBody:
    """A blob's bytes from byte `start`, as another node sends them; `size` is that of the whole blob, None when the
    node does not report it."""

    def __init__(self, response: DownloadResponse) -> None:
        whole = response.status == 200
        self.start, self.size = (0, content_length(response)) if whole else content_range(response)
        self._response = response

    async def receive(self, consume: Consume) -> bool:
        """Receive the body in a thread, see `DownloadResponse.receive`.

        After a `TimeoutError` (nothing arrived for `STALL_SECONDS`), this may be called again to wait on.
        """
        return await self._response.receive(consume)


class PeerClient:
    """The connections to the other nodes. No request is sent before `secret`, which is in the bucket, is known."""

    def __init__(self, user_agent: str) -> None:
        """`user_agent` is sent with all requests. To be called in the event loop."""
        self.secret: str | None = None
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used: the URLs of nodes are http
        self._downloads = DownloadSession(tls, user_agent, CONNECT_SECONDS, STALL_SECONDS)
        self._events = _session(user_agent, aiohttp.ClientTimeout(_EVENT_SECONDS))
        self._waits = _session(
            user_agent, aiohttp.ClientTimeout(LONGEST_WAIT_SECONDS + CONNECT_SECONDS, sock_connect=CONNECT_SECONDS)
        )
        """A session of its own: each wait takes a connection, and events must not wait for one."""

    async def close(self) -> None:
        """Close all connections."""
        self._downloads.close()
        await self._events.close()
        await self._waits.close()

    @asynccontextmanager
    async def open_blob(
        self, address: str, digest: Digest, start: int = 0, origin: tuple[str, str] | None = None
    ) -> AsyncIterator[PeerBody | None]:
        """Open a blob of the node at `address` from byte `start` on; None where the node has not got it.

        With `origin`, a registry's host and a repository, the node is asked to fetch a blob that it has not got, if it
        has a manifest with it. Older nodes ignore this.

        Raises `PeerUnavailable`, and `TimeoutError` when the node accepted the request and has not sent the head of a
        response within `STALL_SECONDS`: its own download may not have begun.
        """
        headers = self._headers() | ({"Range": f"bytes={start}-"} if start else {})
        try:
            url = URL(f"{address}/blob/{digest}")
            if origin is not None:
                url = url.with_query(registry=origin[0], repository=origin[1])
            response = await self._downloads.get(url, headers)
        except aiohttp.ConnectionTimeoutError as error:
            raise PeerUnavailable(f"{address} cannot be reached") from error
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: an invalid address
            if isinstance(error, TimeoutError):
                raise
            raise PeerUnavailable(f"{address} cannot be reached: {type(error).__name__}") from error
        try:
            if response.status == HTTPStatus.NOT_FOUND:
                yield None
                return
            body = PeerBody(response) if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT) else None
            if body is None or body.start not in (0, start):
                raise PeerUnavailable(f"{address} answered with status {response.status}")
            yield body
        finally:
            response.release()

    async def wait_released(self, address: str, name: str) -> bool:
        """Return True once the node at `address` has released a lease, False if it does not hold it, is too busy, or is
        of an older version. Raises `PeerUnavailable`.
        """
        try:
            async with self._waits.get(
                f"{address}/lease/{name}", headers=self._headers(), allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PeerUnavailable(f"{address} cannot be reached: {type(error).__name__}") from error
        if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND):
            raise PeerUnavailable(f"{address} answered with status {status}")
        return status == HTTPStatus.NO_CONTENT

    async def send_event(self, address: str, fields: Mapping[str, object]) -> None:
        """Report an event to the node at `address`; raises `PeerUnavailable`."""
        headers = self._headers()
        try:  # a redirect could lead to a server that trusts this machine
            async with self._events.post(
                f"{address}/event", json=dict(fields), headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PeerUnavailable(f"{address} cannot be reached: {type(error).__name__}") from error
        if status != HTTPStatus.NO_CONTENT:
            raise PeerUnavailable(f"{address} answered with status {status}")

    def _headers(self) -> dict[str, str]:
        if self.secret is None:
            raise PeerUnavailable("the secret of the fleet is not known yet")
        return {"Authorization": f"Bearer {self.secret}"}


def _session(user_agent: str, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """Return a session with connections of its own, at most `_MAX_CONNECTIONS`."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS),
        timeout=timeout,
        headers={"User-Agent": user_agent},
        cookie_jar=aiohttp.DummyCookieJar(),
    )
