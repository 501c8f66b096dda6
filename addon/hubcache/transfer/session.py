"""The cache's own HTTP session, and the small things that all its requests need."""

import email.utils
import ssl
import time
import zlib
from datetime import UTC

import aiohttp
from yarl import URL

from ..oci.errors import BadUpstream
from .connector import open_connector, reuse_trace

CONNECT_SECONDS = 5.0
PROGRESS_SECONDS = 30.0
"""Longest wait for the first byte of an answer, and then for each next one. Clients wait one to five minutes."""

_PAUSE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 3600.0
_GZIP = b"\x1f\x8b"

READ_BUFFER = 1 << 19
"""Bytes that aiohttp reads ahead for one answer; with its own 64 KiB a fast upstream costs three times the wake-ups."""


def open_session(tls: ssl.SSLContext, user_agent: str, *, guarded: bool = False) -> aiohttp.ClientSession:
    """A session with time-outs for connecting and for progress, none for a whole transfer, and no cookies.

    Answers are wanted as they are stored: `identity`, and never decompressed here. A body encoded on the way would
    otherwise be kept under a digest that it does not have. A `guarded` session, for addresses that upstreams name,
    connects to no inner one (see `oci.address`), whatever name led there.
    """
    return aiohttp.ClientSession(
        connector=open_connector(tls, guarded=guarded),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=PROGRESS_SECONDS),
        headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=READ_BUFFER,
        max_line_size=16384,
        max_field_size=16384,
        trace_configs=[reuse_trace()],
    )


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """A URL; raises `ValueError` for what is none, which yarl does not for `0://[]@`."""
    try:
        return URL(text, encoded=encoded)
    except IndexError as error:
        raise ValueError("malformed authority") from error


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body as it is on the wire; raises `BadUpstream` when it is longer than `limit` bytes."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            raise BadUpstream("upstream's answer is too large", {"limit": limit})
        parts.append(part)
    return b"".join(parts)


async def read_text(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """A body that is text (JSON); one that was encoded although identity was asked for is decoded.

    A label alone decides nothing: gzip's first bytes begin no text, and text does not become gzip by its label.
    """
    return decoded(response, await read_body(response, limit), limit)


def content_coding(response: aiohttp.ClientResponse) -> str | None:
    """The content coding that a body is labelled with although none was accepted."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    return None if coding in ("", "identity") else coding[:50]


def decoded(response: aiohttp.ClientResponse, body: bytes, limit: int) -> bytes:
    """A text without the coding that its label tells; raises `BadUpstream` for one that is not to be decoded."""
    coding = content_coding(response)
    if coding is None or body.lstrip()[:1] in (b"{", b"["):
        return body
    if coding in ("gzip", "x-gzip") and body.startswith(_GZIP):
        try:
            plain = zlib.decompressobj(wbits=31).decompress(body, limit + 1)
        except zlib.error as error:
            raise BadUpstream("upstream sent a body that is labelled gzip and is not", {"encoding": coding}) from error
        if len(plain) > limit:
            raise BadUpstream("upstream's answer is too large", {"limit": limit})
        return plain
    raise BadUpstream("upstream encoded a body although identity was asked for", {"encoding": coding})


def pause(response: aiohttp.ClientResponse) -> float:
    """Seconds not to ask again after a 429: what it says, or a minute, but an hour at most."""
    told = retry_after(response)
    return min(_PAUSE_SECONDS if told is None else told, _LONGEST_PAUSE_SECONDS)


def retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of a `Retry-After` header, given as such or as a date (RFC 9110 section 10.2.3).

    A date is counted from the answer's own `Date`, if it has one: the two clocks need not agree.
    """
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value) if len(value) < 8 else None
    until = _date(value)
    if until is None:
        return None
    return max(0.0, until - (_date(response.headers.get("Date", "")) or time.time()))


def _date(text: str) -> float | None:
    """An HTTP date (RFC 9110 section 5.6.7, in any of its three forms) in seconds since the epoch."""
    try:
        found = email.utils.parsedate_to_datetime(text)
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
