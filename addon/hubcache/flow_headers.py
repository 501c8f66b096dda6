"""From an `Answer` to mitmproxy's response, and the few headers of passed-through answers that must be adapted."""

from urllib.parse import urlsplit

from mitmproxy import http

from .oci.registry import HUB_REALM, Registry
from .serve.cache_status import bypassed
from .serve.messages import Answer
from .transfer.tokens import Challenge


def headers(answer: Answer) -> http.Headers:
    """An answer's headers; `Content-Length` is the body's, also where a HEAD has none."""
    made = http.Headers([(name.encode(), value.encode("latin-1", "replace")) for name, value in answer.headers.items()])
    if answer.status != 304:
        made["Content-Length"] = str(answer.length)
    return made


def response(answer: Answer, kind: type[http.Response] = http.Response) -> http.Response:
    """An answer from memory."""
    made = kind.make(answer.status, answer.body)
    made.headers = headers(answer)
    return made


def adapt_forwarded(passed: http.Response, registry: Registry, *, proxied: bool) -> None:
    """Make an upstream's answer right for a client that does not know the upstream's own address.

    A `Location` inside the upstream becomes relative (uploads); a challenge of the Hub names the Hub's realm.
    """
    passed.headers["Cache-Status"] = bypassed()
    location = passed.headers.get("location")
    if location is not None and location.startswith(f"{registry.upstream}/"):
        parts = urlsplit(location)
        passed.headers["Location"] = parts.path + (f"?{parts.query}" if parts.query else "")
    challenge = Challenge.parse(passed.headers.get("www-authenticate")) if registry.is_hub and proxied else None
    if challenge is not None:
        passed.headers["WWW-Authenticate"] = Challenge(HUB_REALM, challenge.service, challenge.scope).render()
