"""Keeps credentials out of flows, which mitmproxy shows, saves and exports, while they still reach the wire."""

from mitmproxy import http

HIDDEN = "[hidden by hubcache]"


class SecretHeaders(http.Headers):
    """Headers whose `Authorization` is in the bytes that are sent, and nowhere else: not in fields, state or copies."""

    def __init__(self, headers: http.Headers, authorization: str) -> None:
        super().__init__(headers.fields)
        self._line = b"Authorization: " + authorization.encode("latin-1", "replace") + b"\r\n"

    def __bytes__(self) -> bytes:
        shown = http.Headers(field for field in self.fields if field[0].lower() != b"authorization")
        return bytes(shown) + self._line


def hide(request: http.Request) -> None:
    """Replace credentials by a note that there were some."""
    for name in ("authorization", "cookie"):
        if name in request.headers:
            request.headers[name] = HIDDEN


def send(request: http.Request, authorization: str | None) -> None:
    """Send `authorization`, or none, with a request whose own was hidden."""
    if authorization is None:
        request.headers.pop("authorization", None)
    else:
        request.headers = SecretHeaders(request.headers, authorization)
