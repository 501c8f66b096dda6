"""Parses the request heads that clients of registries usually send (RFC 9112 sections 3 and 5).

All others are left to mitmproxy.
"""

import re
from typing import NamedTuple, Self

_MAX_HEAD = 16 << 10
_HEAD = re.compile(
    rb"(GET|HEAD) (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)+)\r\n",
)
"""A head that all parsers read alike: no other line ends, no folded lines, no bytes beyond ASCII."""
_UNUSUAL = {"content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"}
"""Headers of requests that have a body, or need more than an answer."""


class RequestHead(NamedTuple):
    """The head of a request. `headers` have lower-case names; `length` is that of the head in bytes."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    length: int

    @property
    def is_last(self) -> bool:
        """Whether the connection is to be closed after the answer."""
        return self.headers.get("connection", "").lower() == "close"

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Return the head of the first received request; None where it is unusual or not complete."""
        found = _HEAD.match(data[:_MAX_HEAD])
        if found is None:
            return None
        headers: dict[str, str] = {}
        for line in found[3].decode().split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip(" \t")
            if name == "host" and name in headers:
                return None
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        connection = headers.get("connection", "").lower()
        if connection not in ("", "keep-alive", "close") or "host" not in headers or not _UNUSUAL.isdisjoint(headers):
            return None
        path, _, query = found[2].decode().partition("?")
        return cls(found[1].decode(), path, query, headers, found.end())
