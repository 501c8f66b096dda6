"""Has mitmproxy serve an accepted connection, and closes the connection afterwards."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mitmproxy.proxy.mode_servers import ServerInstance

type Server = ServerInstance[Any]
"""mitmproxy's server of one mode."""


def stream_handler(server: Server) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return the callback with which an `asyncio.StreamReaderProtocol` has `server` serve a client."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # mitmproxy 12.3.1: ServerInstance.handle_stream. Without it no client can be left to mitmproxy.
            await server.handle_stream(reader, writer)
        finally:
            # mitmproxy 12.3.1 leaves the socket open if it closes the connection before it has handled the event that
            # the client closed its side. The client would wait until the garbage collector closes the socket.
            writer.close()

    return serve
