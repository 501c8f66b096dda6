"""Connections to upstreams: where they may lead, which were used before, and what is overlooked on them."""

import asyncio
import errno
import functools
import socket
import ssl

import aiohttp
from aiohttp.client_proto import ResponseHandler

from ..oci.address import is_local_address

REFUSED_ADDRESS = "an address of this machine or its link"
"""What is said of an address that a guarded connector does not connect to."""


def open_connector(tls: ssl.SSLContext, *, guarded: bool) -> aiohttp.TCPConnector:
    """A connector without a limit of connections; see `open_session`."""
    factory = _outer_socket if guarded else None
    connector = aiohttp.TCPConnector(ssl=tls, limit=0, enable_cleanup_closed=False, socket_factory=factory)
    handler: type[ResponseHandler] = _Handler
    connector._factory = functools.partial(handler, loop=asyncio.get_running_loop())
    return connector


def _outer_socket(info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """A socket for one resolved address: after resolution, so that neither a name nor another spelling gets around."""
    family, kind, protocol, _, address = info
    if is_local_address(str(address[0])):
        raise OSError(errno.EACCES, REFUSED_ADDRESS)
    return socket.socket(family, kind, protocol)


class _Handler(ResponseHandler):
    """Gives the parser the head of an answer by itself.

    Bytes after the end of an answer (a `Content-Length` that is too small, a body to a HEAD) are an error to aiohttp,
    and where they come in one read with the head, the answer is lost with them. curl and Go's client overlook them and
    close the connection. So does this: what was parsed before the error stays.
    """

    def data_received(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4 if data.startswith(b"HTTP/") else 0
        if 4 <= end < len(data):
            super().data_received(data[:end])
            data = data[end:]
        super().data_received(data)


class Attempt:
    """Given as `trace_request_ctx`, tells whether a request went out on a connection that had served another."""

    reused = False


def reuse_trace() -> aiohttp.TraceConfig:
    """Sets `Attempt.reused`."""

    async def reused(_: object, context: object, __: object) -> None:
        _note(context, reused=True)

    async def created(_: object, context: object, __: object) -> None:
        _note(context, reused=False)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    trace.on_connection_create_start.append(created)
    return trace


def _note(context: object, *, reused: bool) -> None:
    attempt = getattr(context, "trace_request_ctx", None)
    if isinstance(attempt, Attempt):
        attempt.reused = reused
