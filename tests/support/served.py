"""Servers with one handler, or one answer, and a session of the cache's own."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from hubcache.transfer.session import open_session
from yarl import URL

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A session, and the URL of a server that answers with `handler`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    session = open_session(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "hubcache-test/1")
    try:
        yield session, f"http://{host}:{port}/"
    finally:
        await session.close()
        await runner.cleanup()


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[URL]:
    """A server that sends the same bytes, in one write, in response to each request, until the client disconnects."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x")
    finally:
        server.close()
