"""Sessions: no cookies, no content codings, and bounded waits."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from hubcache.transfer import session as session_module
from support.served import served


async def test_requests_accept_identity_name_the_program_and_have_no_cookies() -> None:
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


async def test_wait_for_a_response_and_for_progress_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PROGRESS_SECONDS", 0.5)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/body":
            response = web.StreamResponse()
            response.content_length = 10
            await response.prepare(request)
            await response.write(b"x")
        return await asyncio.Future()

    async with served(answer) as (session, url):
        with pytest.raises(TimeoutError):
            await session.get(url)
        async with session.get(url + "body") as response:
            with pytest.raises((TimeoutError, aiohttp.ClientError)):
                await response.read()


async def test_slow_body_that_makes_progress_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole body takes longer than the time-out, and each byte takes much less."""
    monkeypatch.setattr(session_module, "PROGRESS_SECONDS", 1.0)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 12
        await response.prepare(request)
        for _ in range(12):
            await asyncio.sleep(0.1)
            await response.write(b"x")
        return response

    async with served(answer) as (session, url), session.get(url) as response:
        assert await response.read() == b"x" * 12
