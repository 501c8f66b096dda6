"""Reads small response bodies into memory, up to a limit, and decodes them where a server applied a content coding."""

import zlib

import aiohttp

from ..oci.errors import BadUpstream, Unavailable
from .http_response import HttpResponse

_GZIP_MAGIC = b"\x1f\x8b"


async def read_body(response: HttpResponse, limit: int, what: str) -> bytes:
    """Return the whole body as it was sent; `what` names it in errors.

    Raises `BadUpstream` when it is longer than `limit` bytes, `Unavailable` when the transfer breaks off.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async for part in response.content.iter_any():
            size += len(part)
            if size > limit:
                raise BadUpstream("upstream's answer is too large", {"limit": limit})
            parts.append(part)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"transfer of {what} broke off: {type(error).__name__}") from error
    return b"".join(parts)


async def read_text_body(response: HttpResponse, limit: int, what: str) -> bytes:
    """Return a body that is text (JSON), decoded if it was encoded although `identity` was requested; raises as
    `read_body` and `decode_body` do."""
    return decode_body(response, await read_body(response, limit, what), limit)


def content_coding(response: HttpResponse) -> str | None:
    """Return the content coding that a response declares although the request accepted none (RFC 9110 section 8.4)."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    return None if coding in ("", "identity") else coding[:50]


def decode_body(response: HttpResponse, body: bytes, limit: int) -> bytes:
    """Return a text without the declared content coding; raises `BadUpstream` when it cannot be decoded.

    The header alone does not decide: no JSON text begins with gzip's first bytes, and some servers declare gzip for
    text that is not encoded.
    """
    coding = content_coding(response)
    if coding is None or body.lstrip()[:1] in (b"{", b"["):
        return body
    if coding in ("gzip", "x-gzip") and body.startswith(_GZIP_MAGIC):
        try:
            plain = zlib.decompressobj(wbits=31).decompress(body, limit + 1)
        except zlib.error as error:
            raise BadUpstream("upstream declared gzip for a body that is not gzip", {"encoding": coding}) from error
        if len(plain) > limit:
            raise BadUpstream("upstream's answer is too large", {"limit": limit})
        return plain
    raise BadUpstream("upstream encoded a body although identity was requested", {"encoding": coding})
