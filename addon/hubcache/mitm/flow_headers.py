"""From an `Answer` to mitmproxy's response, and the few headers of passed-through answers that must be adapted."""

from urllib.parse import urlsplit

from mitmproxy import http

from ..oci.registry import Registry
from ..serve.cache_status import bypassed
from ..serve.challenges import client_challenge, client_error
from ..serve.messages import Answer
from ..transfer.challenge import Challenge


def headers(answer: Answer) -> http.Headers:
    """An answer's headers; `Content-Length` is the body's, also where a HEAD has none."""
    made = http.Headers([(name.encode(), value.encode("latin-1", "replace")) for name, value in answer.headers.items()])
    if answer.status != 304:
        made["Content-Length"] = str(answer.length)
    return made


def response(answer: Answer) -> http.Response:
    """An answer from memory."""
    made = http.Response.make(answer.status, answer.body)
    made.headers = headers(answer)
    return made


def adapt_forwarded(
    passed: http.Response,
    registry: Registry,
    *,
    proxied: bool,
    presented: str | None = None,
    sent: str | None = None,
) -> None:
    """Make an upstream's answer right for a client that does not know the upstream's own address.

    A `Location` inside the upstream becomes relative (uploads); a challenge names the realm that clients are told, and
    what is wrong with the `Authorization` that the client `presented`, where that was `sent`.
    """
    passed.headers["Cache-Status"] = bypassed()
    location = passed.headers.get("location")
    if location is not None and location.startswith(f"{registry.upstream}/"):
        parts = urlsplit(location)
        passed.headers["Location"] = parts.path + (f"?{parts.query}" if parts.query else "")
    demands = passed.headers.get_all("www-authenticate")
    if demands and proxied:
        told = [_told(demand, registry, presented, sent) for demand in demands]
        passed.headers.set_all("WWW-Authenticate", told)


def _told(demand: str, registry: Registry, presented: str | None, sent: str | None) -> str:
    challenge = Challenge.parse(demand)
    if challenge is None:
        return demand
    told = client_challenge(registry, challenge, client_error(challenge.error, presented, sent))
    return demand if told == challenge else told.render()  # or all else that may stand there would be lost
