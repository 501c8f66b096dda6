"""Reads manifests, digests, sizes and ranges from an upstream's response, and verifies manifests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..oci.digest import Digest
from ..oci.errors import BadUpstream, DigestInvalid
from ..oci.manifest import MAX_MANIFEST
from .challenge import Challenge
from .http_response import HttpResponse
from .response_body import content_coding, decode_body, read_body


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """A manifest's bytes, verified against `digest`.

    `answered_at`, in seconds since the epoch by this machine's clock: the registry gave this answer at that time or
    later. It is the time at which the request was sent, from which RFC 9111 section 4.2.3 counts a response's age.
    """

    digest: Digest
    media_type: str
    body: bytes
    answered_at: float = field(compare=False)


async def read_manifest(response: HttpResponse, reference: str | Digest, sent_at: float) -> FetchedManifest:
    """Read a manifest and verify it against the digest that was requested, or that the upstream sent.

    `sent_at` is the time at which the request was sent, in seconds since the epoch.

    Where the response declares a content coding, the digest decides whether the body is encoded. Raises `BadUpstream`
    when the digest does not match, `Unavailable` when the transfer breaks off.
    """
    body = await read_body(response, MAX_MANIFEST, "a manifest")
    expected = reference if isinstance(reference, Digest) else digest_header(response)
    if expected is None or not expected.matches(body):
        body = decode_body(response, body, MAX_MANIFEST)
    if expected is not None and not expected.matches(body):
        raise BadUpstream(
            "manifest does not match its digest", {"expected": str(expected), "got": str(Digest.of(body))}
        )
    return FetchedManifest(expected or Digest.of(body), response.headers.get("Content-Type", ""), body, sent_at)


@contextmanager
def explain_content_coding(response: HttpResponse) -> Iterator[None]:
    """Replace a `BadUpstream` raised inside by one about the content coding, if the response declares one.

    A coding that is declared for correct bytes is ignored: some servers declare gzip for layers, which are gzip files
    themselves.
    """
    try:
        yield
    except BadUpstream as error:
        coding = content_coding(response)
        if coding is None:
            raise
        detail = {"encoding": coding, "found": error.message}
        raise BadUpstream("upstream encoded a body although identity was requested", detail) from error


def challenge_header(response: HttpResponse) -> str | None:
    """Return the challenge of a 401; with several headers (RFC 9110 section 11.6.1) the first Bearer one."""
    headers = response.headers.getall("WWW-Authenticate", [])
    return next((header for header in headers if Challenge.parse(header)), headers[0] if headers else None)


def digest_header(response: HttpResponse) -> Digest | None:
    """Return the `Docker-Content-Digest`, None where there is none; raises `BadUpstream` when it is malformed."""
    value = response.headers.get("Docker-Content-Digest")
    if value is None:
        return None
    try:
        return Digest.parse(value)
    except DigestInvalid as error:
        raise BadUpstream("upstream sent a malformed Docker-Content-Digest", {"digest": value[:200]}) from error


def content_length(response: HttpResponse) -> int | None:
    """Return the body's size in bytes as declared; None where it is not."""
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdecimal() and len(value) < 20 else None


def content_range(response: HttpResponse) -> tuple[int, int | None]:
    """Return first byte and complete size of `Content-Range: bytes 10-99/100` (RFC 9110 section 14.4).

    The first byte is -1 where it cannot be parsed, the size None.
    """
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    interval, _, size = rest.partition("/")
    first = interval.partition("-")[0]
    is_valid = unit == "bytes" and first.isdecimal() and len(first) < 20
    return int(first) if is_valid else -1, int(size) if size.isdecimal() and len(size) < 20 else None
