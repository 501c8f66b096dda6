"""The cache's own HTTP session, and the small things that all its requests need."""

import ssl

import aiohttp
from yarl import URL

from ..oci.errors import BadUpstream

CONNECT_SECONDS = 5.0
PROGRESS_SECONDS = 30.0
"""Longest wait for the first byte of an answer, and then for each next one. Clients wait one to five minutes."""

_PAUSE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 3600.0

READ_BUFFER = 1 << 19
"""Bytes that aiohttp reads ahead for one answer; with its own 64 KiB a fast upstream costs three times the wake-ups."""


def open_session(tls: ssl.SSLContext, user_agent: str) -> aiohttp.ClientSession:
    """A session with time-outs for connecting and for progress, none for a whole transfer, and no cookies.

    Answers are wanted as they are stored: `identity`, and never decompressed here. A body encoded on the way would
    otherwise be kept under a digest that it does not have.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=0, enable_cleanup_closed=False),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=PROGRESS_SECONDS),
        headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=READ_BUFFER,
        max_line_size=16384,
        max_field_size=16384,
    )


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """A URL; raises `ValueError` for what is none, which yarl does not for `0://[]@`."""
    try:
        return URL(text, encoded=encoded)
    except IndexError as error:
        raise ValueError("malformed authority") from error


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body; raises `BadUpstream` when it is longer than `limit` bytes or encoded."""
    refuse_encoded(response)
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            raise BadUpstream("upstream's answer is too large", {"limit": limit})
        parts.append(part)
    return b"".join(parts)


def refuse_encoded(response: aiohttp.ClientResponse) -> None:
    """Raise `BadUpstream` when a body has a content coding although none was accepted."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise BadUpstream("upstream encoded a body although identity was asked for", {"encoding": coding[:50]})


def pause(response: aiohttp.ClientResponse) -> float:
    """Seconds not to ask again after a 429: what it says, or a minute, but an hour at most."""
    return min(retry_after(response) or _PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)


def retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of a `Retry-After` header given in seconds; its date form is not used by registries."""
    value = response.headers.get("Retry-After", "").strip()
    return float(value) if value.isdecimal() and len(value) < 8 else None
