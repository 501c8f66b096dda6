"""Builds the answers about content: status and headers of manifests, blobs and pages of referrers."""

from urllib.parse import parse_qs, urlencode

from ..oci.digest import Digest
from ..oci.media import OCI_INDEX, OCTET_STREAM
from ..oci.reference import ReferrersTarget
from .cached_blobs import BlobResult
from .cached_referrers import ReferrersResult
from .errors import API_VERSION
from .messages import Answer, Listener, Request
from .stored_manifests import ManifestResult

DIGEST = "Docker-Content-Digest"


def manifest_answer(request: Request, found: ManifestResult) -> Answer:
    """Return 200, or 304 for a client that has the manifest (distribution spec, "Pulling manifests")."""
    headers = _headers(request, found.media_type, found.cache_status) | _digest_headers(found.digest)
    if _matches(request, found.digest):
        return Answer(304, headers, found.result, content=found.digest)
    body = b"" if request.method == "HEAD" or found.body is None else found.body
    return Answer(200, headers, found.result, body=body, length=found.size, size=found.size, content=found.digest)


def blob_answer(request: Request, digest: Digest, blob: BlobResult) -> Answer:
    """Return 200, 206 for a range, or 304; a 304 has no source, so the caller closes the blob's source.

    See RFC 9110 sections 14 and 15.3.7, and "Pulling blobs" in the distribution spec.
    """
    headers = _headers(request, OCTET_STREAM, blob.cache_status) | _digest_headers(digest) | {"Accept-Ranges": "bytes"}
    if _matches(request, digest):
        return Answer(304, headers, blob.result)
    if blob.part is None:
        return Answer(200, headers, blob.result, source=blob.source, length=blob.size, size=blob.size)
    headers["Content-Range"] = f"bytes {blob.part.start}-{blob.part.end - 1}/{blob.size}"
    length = blob.part.end - blob.part.start
    return Answer(206, headers, blob.result, source=blob.source, length=length, size=blob.size)


def referrers_answer(request: Request, target: ReferrersTarget, found: ReferrersResult) -> Answer:
    """Return a page of referrers (distribution spec, "Listing Referrers")."""
    headers = _headers(request, OCI_INDEX, found.cache_status)
    if found.filters_applied:
        headers["OCI-Filters-Applied"] = found.filters_applied
    if found.next_query:
        headers["Link"] = _next_page(request, target, found.next_query)
    size = len(found.body)
    body = b"" if request.method == "HEAD" else found.body
    return Answer(200, headers, found.result, body=body, length=size, size=size, content=found.digest)


def _next_page(request: Request, target: ReferrersTarget, query: str) -> str:
    """Return a relative link, so that the client stays at its listener; at a mirror, with its `ns` parameter."""
    namespaces = [("ns", value) for value in parse_qs(request.query).get("ns", [])[:1]]
    parameters = "&".join(part for part in (query, urlencode(namespaces)) if part)
    return f'</v2/{target.repository}/referrers/{target.digest}?{parameters}>; rel="next"'


def _headers(request: Request, media_type: str, status: str) -> dict[str, str]:
    headers = API_VERSION | {"Content-Type": media_type, "Cache-Status": status}
    if request.listener is Listener.MIRROR:
        headers["OCI-Namespace"] = request.registry.namespace
    return headers


def _digest_headers(digest: Digest) -> dict[str, str]:
    return {DIGEST: str(digest), "ETag": etag(digest)}


def etag(digest: Digest) -> str:
    """Return the entity tag of content (RFC 9110 section 8.8.3)."""
    return f'"{digest}"'


def _matches(request: Request, digest: Digest) -> bool:
    """Whether `If-None-Match` names this content (RFC 9110 section 13.1.2)."""
    condition = request.headers.get("if-none-match", "")
    return condition == "*" or etag(digest) in (item.strip().removeprefix("W/") for item in condition.split(","))
