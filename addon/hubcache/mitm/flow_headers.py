"""Makes mitmproxy's response from an `Answer`, and adapts the headers of answers that are passed on."""

from urllib.parse import urlsplit

from mitmproxy import http

from ..oci.registry import Registry
from ..serve.cache_status import bypassed
from ..serve.challenges import client_challenge, client_error
from ..serve.messages import Answer
from ..transfer.challenge import Challenge


def headers(answer: Answer) -> http.Headers:
    """Return an answer's headers; `Content-Length` is that of the body, also in the answer to a HEAD request."""
    made = http.Headers([(name.encode(), value.encode("latin-1", "replace")) for name, value in answer.headers.items()])
    if answer.status != 304:
        made["Content-Length"] = str(answer.length)
    return made


def response(answer: Answer) -> http.Response:
    """Return the response for an answer, with the body that it has in memory."""
    made = http.Response.make(answer.status, answer.body)
    made.headers = headers(answer)
    return made


def drop_body(request: http.Request) -> None:
    """Discard the body of a request that is being received: it will not be read."""
    request.raw_content = b""  # None until all of it is received


def body_length(request: http.Request) -> int | None:
    """Return the length of a request's body by its headers (RFC 9112 section 6.3); None where they do not say."""
    if "transfer-encoding" in request.headers:
        return None
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else None


def adapt_forwarded(
    passed: http.Response,
    registry: Registry,
    *,
    proxied: bool,
    presented: str | None = None,
    sent: str | None = None,
) -> None:
    """Adapt an upstream's answer to a client that does not know the upstream's own address.

    A `Location` inside the upstream becomes relative (uploads). A challenge names the realm that clients use, and the
    error that applies to the `Authorization` that the client `presented`; `sent` is the one that was sent upstream.
    """
    passed.headers["Cache-Status"] = bypassed()
    location = passed.headers.get("location")
    if location is not None and location.startswith(f"{registry.upstream}/"):
        parts = urlsplit(location)
        passed.headers["Location"] = parts.path + (f"?{parts.query}" if parts.query else "")
    challenges = passed.headers.get_all("www-authenticate")
    if challenges and proxied:
        adapted = [_challenge_for_client(text, registry, presented, sent) for text in challenges]
        passed.headers.set_all("WWW-Authenticate", adapted)


def _challenge_for_client(text: str, registry: Registry, presented: str | None, sent: str | None) -> str:
    challenge = Challenge.parse(text)
    if challenge is None:
        return text
    adapted = client_challenge(registry, challenge, client_error(challenge.error, presented, sent))
    return text if adapted == challenge else adapted.render()  # rendering would lose unknown parameters
