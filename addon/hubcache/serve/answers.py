"""The answers about content: status and headers of manifests, blobs and listings of referrers."""

from urllib.parse import parse_qs, urlencode

from ..oci.digest import Digest
from ..oci.media import OCI_INDEX, OCTET_STREAM
from ..oci.reference import ReferrersTarget
from .cached_blobs import BlobResult
from .cached_manifests import ManifestResult
from .cached_referrers import ReferrersResult
from .errors import API_VERSION
from .messages import Answer, Listener, Request

DIGEST = "Docker-Content-Digest"


def manifest_answer(request: Request, found: ManifestResult) -> Answer:
    """200, or 304 where the client has it."""
    headers = _content_headers(request, found.digest, found.media_type, found.cache_status)
    if _matches(request, found.digest):
        return Answer(304, headers, found.result)
    if request.method == "HEAD" or found.body is None:
        return Answer(200, headers, found.result, length=found.size, size=found.size)
    return Answer(200, headers, found.result, body=found.body, length=found.size, size=found.size)


def blob_answer(request: Request, digest: Digest, blob: BlobResult) -> Answer:
    """200, 206 for a range, or 304, which has no source: the caller closes the blob's."""
    headers = _content_headers(request, digest, OCTET_STREAM, blob.cache_status) | {"Accept-Ranges": "bytes"}
    if _matches(request, digest):
        return Answer(304, headers, blob.result)
    if blob.part is None:
        return Answer(200, headers, blob.result, source=blob.source, length=blob.size, size=blob.size)
    headers["Content-Range"] = f"bytes {blob.part.start}-{blob.part.end - 1}/{blob.size}"
    length = blob.part.end - blob.part.start
    return Answer(206, headers, blob.result, source=blob.source, length=length, size=blob.size)


def listing_answer(request: Request, target: ReferrersTarget, listed: ReferrersResult) -> Answer:
    """A page of referrers (distribution spec, "Listing Referrers")."""
    headers = API_VERSION | {"Content-Type": OCI_INDEX, "Cache-Status": listed.cache_status}
    if request.listener is Listener.MIRROR:
        headers["OCI-Namespace"] = request.registry.namespace
    if listed.filters:
        headers["OCI-Filters-Applied"] = listed.filters
    if listed.following:
        headers["Link"] = _next_page(request, target, listed.following)
    size = len(listed.body)
    body = b"" if request.method == "HEAD" else listed.body
    return Answer(200, headers, listed.result, body=body, length=size, size=size)


def _next_page(request: Request, target: ReferrersTarget, query: str) -> str:
    """A relative link, which keeps the client at its door; at a mirror `ns` goes with it."""
    namespaces = [("ns", value) for value in parse_qs(request.query).get("ns", [])[:1]]
    parameters = "&".join(part for part in (query, urlencode(namespaces)) if part)
    return f'</v2/{target.repository}/referrers/{target.digest}?{parameters}>; rel="next"'


def _content_headers(request: Request, digest: Digest, media_type: str, status: str) -> dict[str, str]:
    headers = API_VERSION | {
        "Content-Type": media_type,
        DIGEST: str(digest),
        "ETag": etag(digest),
        "Cache-Status": status,
    }
    if request.listener is Listener.MIRROR:
        headers["OCI-Namespace"] = request.registry.namespace
    return headers


def etag(digest: Digest) -> str:
    """The validator of content."""
    return f'"{digest}"'


def _matches(request: Request, digest: Digest) -> bool:
    """RFC 9110 section 13.1.2, for the one validator there is."""
    condition = request.headers.get("if-none-match", "")
    return condition == "*" or etag(digest) in (item.strip().removeprefix("W/") for item in condition.split(","))
