"""The session that all the cache's own requests use: no decoding, no cookies, bounded bodies and waits."""

import asyncio
import email.utils
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from hubcache.oci.errors import BadUpstream
from hubcache.transfer import session as http_module
from hubcache.transfer.session import content_coding, open_session, pause, read_body, read_text, retry_after

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A session and the address of a server that answers with `handler`."""
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


async def test_requests_ask_for_identity_name_the_program_and_carry_no_cookies() -> None:
    seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers)
        return web.Response(headers={"Set-Cookie": "session=1; Path=/"})

    async with served(answer) as (session, url):
        for _ in range(2):
            async with session.get(url.replace("127.0.0.1", "localhost")) as response:
                await response.read()
    assert [headers["Accept-Encoding"] for headers in seen] == ["identity"] * 2
    assert [headers["User-Agent"] for headers in seen] == ["hubcache-test/1"] * 2
    assert all("Cookie" not in headers for headers in seen)


async def test_an_encoded_body_is_as_on_the_wire_and_decoded_only_where_it_is_text() -> None:
    packed = gzip.compress(b"layer")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with served(answer) as (session, url):
        async with session.get(url) as response:
            assert await response.read() == packed
        async with session.get(url) as response:
            assert await read_body(response, 1000) == packed
        async with session.get(url) as response:
            assert await read_text(response, 1000) == b"layer"
        async with session.get(url) as response:
            with pytest.raises(BadUpstream, match="too large"):
                await read_text(response, len(packed) - 1)


@pytest.mark.parametrize(
    ("coding", "told"), [("identity", None), ("", None), (" Identity ", None), ("br", "br"), ("x" * 80, "x" * 50)]
)
async def test_only_identity_is_no_encoding(coding: str, told: str | None) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"x", headers={"Content-Encoding": coding})

    async with served(answer) as (session, url), session.get(url) as response:
        assert content_coding(response) == told


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_read_up_to_its_limit_and_not_beyond(chunked: bool) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = 1000
        await response.prepare(request)
        for _ in range(10):
            await response.write(b"x" * 100)
        return response

    async with served(answer) as (session, url):
        async with session.get(url) as response:
            assert await read_body(response, 1000) == b"x" * 1000
        async with session.get(url) as response:
            with pytest.raises(BadUpstream, match="too large"):
                await read_body(response, 999)


async def test_no_answer_and_no_progress_are_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "PROGRESS_SECONDS", 0.5)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/body":
            response = web.StreamResponse()
            response.content_length = 10
            await response.prepare(request)
            await response.write(b"x")
        await asyncio.sleep(10)
        return web.Response()

    async with served(answer) as (session, url):
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await session.get(url)
        async with session.get(url + "body") as response:
            with pytest.raises((TimeoutError, aiohttp.ClientError)):
                await response.read()
        assert time.monotonic() - begun < 2


async def test_a_slow_body_that_makes_progress_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "PROGRESS_SECONDS", 0.5)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 5
        await response.prepare(request)
        for _ in range(5):
            await asyncio.sleep(0.05)
            await response.write(b"x")
        return response

    async with served(answer) as (session, url), session.get(url) as response:
        assert await response.read() == b"xxxxx"


@pytest.mark.parametrize(
    ("value", "seconds", "paused"),
    [("60", 60.0, 60.0), (" 7 ", 7.0, 7.0), ("0", 0.0, 0.0), ("", None, 60.0), ("-1", None, 60.0), ("1.5", None, 60.0),
     ("soon", None, 60.0), ("9" * 50, None, 60.0), ("9" * 7, 9999999.0, 3600.0),
     ("Wed, 25 Nov 2026 12:00:30 GMT", 30.0, 30.0), ("Wednesday, 25-Nov-26 12:00:30 GMT", 30.0, 30.0),
     ("Wed Nov 25 12:00:30 2026", 30.0, 30.0), ("Wed, 25 Nov 2026 11:00:00 GMT", 0.0, 0.0),
     ("Wed, 25 Nov 2099 11:00:00 GMT", 2303679600.0, 3600.0), ("Wed, 99 Nov 2026 11:00:00 GMT", None, 60.0)],
)  # fmt: skip
async def test_retry_after_is_in_seconds_or_a_date(value: str, seconds: float | None, paused: float) -> None:
    """By the clock of whoever wrote it, which here is wrong."""

    async def answer(_: web.Request) -> web.Response:
        told = {"Date": "Wed, 25 Nov 2026 12:00:00 GMT"} | ({"Retry-After": value} if value else {})
        return web.Response(status=429, headers=told)

    async with served(answer) as (session, url), session.get(url) as response:
        assert (retry_after(response), pause(response)) == (seconds, paused)


async def test_retry_after_a_date_without_a_date_of_the_answer_goes_by_our_clock() -> None:
    async def answer(_: web.Request) -> web.Response:
        until = email.utils.formatdate(time.time() + 100, usegmt=True)
        return web.Response(status=429, headers={"Retry-After": until, "Date": "today"})

    async with served(answer) as (session, url), session.get(url) as response:
        assert retry_after(response) == pytest.approx(100, abs=20)
