"""Connections to upstreams: refuses local addresses, reports reused connections, ignores bytes after a response."""

import asyncio
import errno
import functools
import socket
import ssl

import aiohttp
from aiohttp.client_proto import ResponseHandler

from ..oci.address import is_local_address
from .lookups import OwnThreadsResolver

REFUSED_ADDRESS = "an address of this machine or its link"
"""Text of the error for an address that a guarded connector does not connect to."""


def open_connector(tls: ssl.SSLContext, *, guarded: bool, own_lookups: bool = False) -> aiohttp.TCPConnector:
    """Return a connector without a limit of connections; see `open_session`."""
    factory = _guarded_socket if guarded else None
    resolver = OwnThreadsResolver() if own_lookups else None
    connector = aiohttp.TCPConnector(
        ssl=tls, limit=0, enable_cleanup_closed=False, socket_factory=factory, resolver=resolver
    )
    connector._resolver_owner = True  # closes it, too
    handler: type[ResponseHandler] = _Handler
    connector._factory = functools.partial(handler, loop=asyncio.get_running_loop())
    return connector


def _guarded_socket(info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """Return a socket for a resolved address; raises `OSError` for a local one.

    The check comes after name resolution, so that no host name and no spelling of an address circumvents it.
    """
    family, kind, protocol, _, address = info
    if is_local_address(str(address[0])):
        raise OSError(errno.EACCES, REFUSED_ADDRESS)
    return socket.socket(family, kind, protocol)


class _Handler(ResponseHandler):
    """Passes a response's head to the parser separately from the bytes after it.

    aiohttp treats bytes after the end of a response (a `Content-Length` that is too small, a body in response to a
    HEAD) as an error, and loses the response if they arrive in one read with its head. curl and Go's client ignore such
    bytes and close the connection. This class does the same: what was parsed before the error is kept.
    """

    def data_received(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4 if data.startswith(b"HTTP/") else 0
        if 4 <= end < len(data):
            super().data_received(data[:end])
            data = data[end:]
        super().data_received(data)


class Attempt:
    """Passed as `trace_request_ctx`; records whether a request was sent on a connection that had served another one."""

    reused = False


def reuse_trace() -> aiohttp.TraceConfig:
    """Return the trace that sets `Attempt.reused`."""

    async def reused(_: object, context: object, __: object) -> None:
        _record(context, reused=True)

    async def created(_: object, context: object, __: object) -> None:
        _record(context, reused=False)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    trace.on_connection_create_start.append(created)
    return trace


def _record(context: object, *, reused: bool) -> None:
    attempt = getattr(context, "trace_request_ctx", None)
    if isinstance(attempt, Attempt):
        attempt.reused = reused
