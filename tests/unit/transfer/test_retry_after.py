"""`Retry-After` is a number of seconds or a date (RFC 9110 section 10.2.3)."""

import email.utils
import time

import pytest
from aiohttp import web
from hubcache.transfer.retry_after import pause_seconds, retry_after
from support.served import served


@pytest.mark.parametrize(
    ("value", "seconds", "paused"),
    [("60", 60.0, 60.0), (" 7 ", 7.0, 7.0), ("0", 0.0, 0.0), ("", None, 60.0), ("-1", None, 60.0), ("1.5", None, 60.0),
     ("soon", None, 60.0), ("9" * 50, None, 60.0), ("9" * 7, 9999999.0, 3600.0),
     ("Wed, 25 Nov 2026 12:00:30 GMT", 30.0, 30.0), ("Wednesday, 25-Nov-26 12:00:30 GMT", 30.0, 30.0),
     ("Wed Nov 25 12:00:30 2026", 30.0, 30.0), ("Wed, 25 Nov 2026 11:00:00 GMT", 0.0, 0.0),
     ("Wed, 25 Nov 2099 11:00:00 GMT", 2303679600.0, 3600.0), ("Wed, 99 Nov 2026 11:00:00 GMT", None, 60.0)],
)  # fmt: skip
async def test_retry_after_is_parsed_as_seconds_or_as_a_date(value: str, seconds: float | None, paused: float) -> None:
    """A date is compared with the response's own `Date`, which is wrong here."""

    async def answer(_: web.Request) -> web.Response:
        headers = {"Date": "Wed, 25 Nov 2026 12:00:00 GMT"} | ({"Retry-After": value} if value else {})
        return web.Response(status=429, headers=headers)

    async with served(answer) as (session, url), session.get(url) as response:
        assert (retry_after(response), pause_seconds(response)) == (seconds, paused)


async def test_retry_after_date_without_a_date_header_is_compared_with_the_local_clock() -> None:
    async def answer(_: web.Request) -> web.Response:
        until = email.utils.formatdate(time.time() + 100, usegmt=True)
        return web.Response(status=429, headers={"Retry-After": until, "Date": "today"})

    async with served(answer) as (session, url), session.get(url) as response:
        assert retry_after(response) == pytest.approx(100, abs=20)
