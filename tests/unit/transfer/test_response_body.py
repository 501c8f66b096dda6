"""Small bodies are read up to a limit, and decoded only where they are text."""

import gzip

import pytest
from aiohttp import web
from hubcache.oci.errors import BadUpstream
from hubcache.transfer.response_body import content_coding, read_body, read_text_body
from support.served import served


async def test_encoded_body_is_unchanged_and_decoded_only_when_it_is_text() -> None:
    packed = gzip.compress(b"layer")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with served(answer) as (session, url):
        async with session.get(url) as response:
            assert await response.read() == packed
        async with session.get(url) as response:
            assert await read_body(response, 1000, "a body") == packed
        async with session.get(url) as response:
            assert await read_text_body(response, 1000, "a text") == b"layer"
        async with session.get(url) as response:
            with pytest.raises(BadUpstream, match="too large"):
                await read_text_body(response, len(packed) - 1, "a text")


@pytest.mark.parametrize(
    ("coding", "expected"), [("identity", None), ("", None), (" Identity ", None), ("br", "br"), ("x" * 80, "x" * 50)]
)
async def test_every_coding_but_identity_is_returned(coding: str, expected: str | None) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"x", headers={"Content-Encoding": coding})

    async with served(answer) as (session, url), session.get(url) as response:
        assert content_coding(response) == expected


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_the_limit_is_refused(chunked: bool) -> None:
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
            assert await read_body(response, 1000, "a body") == b"x" * 1000
        async with session.get(url) as response:
            with pytest.raises(BadUpstream, match="too large"):
                await read_body(response, 999, "a body")
