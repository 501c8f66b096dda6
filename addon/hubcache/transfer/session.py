"""The HTTP sessions for the cache's own requests."""

import ssl

import aiohttp
from yarl import URL

from .connector import open_connector, reuse_trace
from .download_session import DownloadSession

CONNECT_SECONDS = 5.0
PROGRESS_SECONDS = 30.0
"""Longest wait for the first byte of a response, and for each next one. Clients wait between one and five minutes."""

READ_BUFFER = 1 << 19
"""Bytes that aiohttp reads ahead for one response. Its default of 64 KiB costs three times as many wake-ups with a fast
upstream."""


def open_session(
    tls: ssl.SSLContext, user_agent: str, *, guarded: bool = False, named_by_clients: bool = False
) -> aiohttp.ClientSession:
    """Return a session with time-outs for connecting and for progress, none for a whole transfer, and no cookies.

    Requests accept `identity` only, and responses are never decompressed: a body with a content coding would be stored
    under a digest that it does not have. A `guarded` session, for URLs that upstreams name, does not connect to local
    addresses (see `oci.address`), whatever the host name. A session for hosts that are `named_by_clients` looks up
    names in threads of its own, and has a time-out for that too.
    """
    connect = 2 * CONNECT_SECONDS if named_by_clients else None
    return aiohttp.ClientSession(
        connector=open_connector(tls, guarded=guarded, own_lookups=named_by_clients),
        timeout=aiohttp.ClientTimeout(
            total=None, connect=connect, sock_connect=CONNECT_SECONDS, sock_read=PROGRESS_SECONDS
        ),
        headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=READ_BUFFER,
        max_line_size=16384,
        max_field_size=16384,
        trace_configs=[reuse_trace()],
    )


def open_download_session(tls: ssl.SSLContext, user_agent: str) -> DownloadSession:
    """Return a session for bodies that are received in threads, with the same time-outs."""
    return DownloadSession(tls, user_agent, CONNECT_SECONDS, PROGRESS_SECONDS)


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """Parse a URL; raises `ValueError` when it is invalid, also for `0://[]@`, for which yarl raises `IndexError`."""
    try:
        return URL(text, encoded=encoded)
    except IndexError as error:
        raise ValueError("malformed authority") from error
