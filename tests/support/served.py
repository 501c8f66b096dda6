"""A server with one handler, and a session of the cache's own for it."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from hubcache.transfer.session import open_session

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
