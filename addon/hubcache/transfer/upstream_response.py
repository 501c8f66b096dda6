"""What is read from an upstream's answer: a manifest, digests, sizes and ranges, checked as far as they can be."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp

from ..oci.digest import Digest
from ..oci.errors import BadUpstream, DigestInvalid, Unavailable
from ..oci.manifest import MAX_MANIFEST
from .challenge import Challenge
from .session import content_coding, decoded, read_body


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """A manifest's bytes, verified against `digest`."""

    digest: Digest
    media_type: str
    body: bytes


async def read_manifest(response: aiohttp.ClientResponse, reference: str | Digest) -> FetchedManifest:
    """The manifest, which must be of the digest that was asked for or that the upstream names.

    Where a label says that it is encoded, the digest tells whether it is.
    """
    try:
        body = await read_body(response, MAX_MANIFEST)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"transfer of a manifest broke off: {type(error).__name__}") from error
    expected = reference if isinstance(reference, Digest) else digest_header(response)
    if expected is None or not expected.matches(body):
        body = decoded(response, body, MAX_MANIFEST)
    if expected is not None and not expected.matches(body):
        raise BadUpstream(
            "manifest does not match its digest", {"expected": str(expected), "got": str(Digest.of(body))}
        )
    return FetchedManifest(expected or Digest.of(body), response.headers.get("Content-Type", ""), body)


@contextmanager
def encoded(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Say what is wrong with a blob that was encoded, where `BadUpstream` is raised about it.

    A label on the right bytes (some servers put it on layers, which are gzip's themselves) is overlooked.
    """
    try:
        yield
    except BadUpstream as error:
        coding = content_coding(response)
        if coding is None:
            raise
        detail = {"encoding": coding, "found": error.message}
        raise BadUpstream("upstream encoded a body although identity was asked for", detail) from error


def challenge_header(response: aiohttp.ClientResponse) -> str | None:
    """The challenge of a 401: where there are several headers (RFC 9110 section 11.6.1), a Bearer one."""
    told = response.headers.getall("WWW-Authenticate", [])
    return next((header for header in told if Challenge.parse(header)), told[0] if told else None)


def digest_header(response: aiohttp.ClientResponse) -> Digest | None:
    """What the upstream calls the content; raises `BadUpstream` for what is no digest."""
    value = response.headers.get("Docker-Content-Digest")
    if value is None:
        return None
    try:
        return Digest.parse(value)
    except DigestInvalid as error:
        raise BadUpstream("upstream sent a malformed Docker-Content-Digest", {"digest": value[:200]}) from error


def content_length(response: aiohttp.ClientResponse) -> int | None:
    """Bytes of the body as announced; None where they are not."""
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdecimal() and len(value) < 20 else None


def content_range(response: aiohttp.ClientResponse) -> tuple[int, int | None]:
    """Start and whole size of `Content-Range: bytes 10-99/100`; the start is -1 where it is not to be understood."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    interval, _, size = rest.partition("/")
    first = interval.partition("-")[0]
    is_read = unit == "bytes" and first.isdecimal() and len(first) < 20
    return int(first) if is_read else -1, int(size) if size.isdecimal() and len(size) < 20 else None
