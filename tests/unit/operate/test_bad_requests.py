"""Requests that are not HTTP are answered, and not logged."""

import asyncio
import logging
from collections.abc import Iterator

import pytest
from aiohttp import web
from hubcache.operate.bad_requests import keep_bad_requests_out_of_log

SERVER = logging.getLogger("aiohttp.server")


@pytest.fixture(autouse=True)
def filtered() -> Iterator[None]:
    before = list(SERVER.filters)
    keep_bad_requests_out_of_log()
    keep_bad_requests_out_of_log()
    yield
    SERVER.filters[:] = before


async def answer_to(request: bytes) -> bytes:
    async def fail(_: web.Request) -> web.Response:
        raise KeyError("a defect")

    app = web.Application()
    app.router.add_get("/fail", fail)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(request)
        try:
            return await asyncio.wait_for(reader.readline(), 10)
        finally:
            writer.close()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\xf7\xf6\\\xf5\x9cZ\xab8\xed\xd5[\x14\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
    ids=["TLS", "noise", "space in a header", "long header"],
)
async def test_request_that_is_not_http_is_answered_and_not_logged(
    caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    with caplog.at_level(logging.INFO):
        assert b" 400 " in await answer_to(request_bytes)
    assert caplog.records == []


async def test_defect_of_a_handler_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert b" 500 " in await answer_to(b"GET /fail HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [record.exc_info is not None for record in caplog.records] == [True]
