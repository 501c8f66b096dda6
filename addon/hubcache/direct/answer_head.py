"""Writes the head of an answer as it is sent (RFC 9112 section 4)."""

from functools import cache
from http import HTTPStatus

from ..serve.messages import Answer


def answer_head(answer: Answer, *, close: bool) -> bytes:
    """Return the head of an answer; with `close`, the connection ends after it.

    `Content-Length` is that of the body, also in the answer to a HEAD request. It is written here, and not by
    mitmproxy, whose response objects take a quarter of the time of a small request.
    """
    headers = answer.headers
    if answer.status != 304 or close:
        headers = dict(headers)
        if answer.status != 304:
            headers["Content-Length"] = str(answer.length)
        if close:
            headers["Connection"] = "close"
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"{_status_line(answer.status)}{fields}\r\n".encode("latin-1", "replace")


@cache
def _status_line(status: int) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""  # which a reason phrase may be (RFC 9112 section 4)
    return f"HTTP/1.1 {status} {phrase}\r\n"
