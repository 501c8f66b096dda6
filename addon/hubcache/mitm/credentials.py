"""Keeps credentials out of flows, which mitmproxy shows, saves and exports, while they are still sent."""

from mitmproxy import http

HIDDEN = "[hidden by hubcache]"


class SecretHeaders(http.Headers):
    """Headers whose secret values appear only in the bytes that are sent, and not in fields, state or copies."""

    def __init__(self, headers: http.Headers, name: str, value: str) -> None:
        super().__init__(headers.fields)
        self._lines: dict[bytes, bytes] = dict(headers._lines) if isinstance(headers, SecretHeaders) else {}
        self._lines[name.lower().encode()] = name.encode() + b": " + value.encode("latin-1", "replace") + b"\r\n"

    def __setitem__(self, key: str | bytes, value: str | bytes) -> None:
        """Set a header that is not secret; a secret one keeps its value and its placeholder.

        mitmproxy's option `upstream_auth` sets `Proxy-Authorization` again, which would show it.
        """
        name = key if isinstance(key, bytes) else key.encode()
        if name.lower() not in self._lines:
            super().__setitem__(key, value)

    def __bytes__(self) -> bytes:
        # mitmproxy 12.3.1 sends a head as `bytes(headers)`. If it did not, upstream would get the placeholder.
        shown = http.Headers(field for field in self.fields if field[0].lower() not in self._lines)
        return bytes(shown) + b"".join(self._lines.values())


def hide(request: http.Request) -> None:
    """Replace credentials by a placeholder that shows that there were some, and remove those for this proxy itself:
    mitmproxy would send them to the server (RFC 9110 section 11.7.2)."""
    request.headers.pop("proxy-authorization", None)
    for name in ("authorization", "cookie"):
        if name in request.headers:
            request.headers[name] = HIDDEN


def hide_signature(response: http.Response) -> None:
    """Show a redirect without its query: the signature in it lets anybody read what the client may read.

    The client still gets it. A relative address is the registry's own, and no secret.
    """
    location = response.headers.get("location", "")
    shown, separator, _ = location.partition("?")
    if separator and not location.startswith("/"):
        response.headers["Location"] = f"{shown}?{HIDDEN}"
        response.headers = SecretHeaders(response.headers, "Location", location)


def add_secret(request: http.Request, name: str, value: str) -> None:
    """Send a header with the request whose value the flow does not show."""
    request.headers[name] = HIDDEN
    request.headers = SecretHeaders(request.headers, name, value)


def send(request: http.Request, authorization: str | None) -> None:
    """Send `authorization`, or none, with a request whose own credentials were hidden."""
    if authorization is None:
        request.headers.pop("authorization", None)
    else:
        request.headers = SecretHeaders(request.headers, "Authorization", authorization)
