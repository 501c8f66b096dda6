"""Translates an upstream's unsuccessful responses into `RegistryError`s; no other module does."""

from ..oci.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    ManifestUnknown,
    RegistryError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ..oci.json_reader import read_json
from .http_response import HttpResponse
from .retry_after import retry_after
from .upstream_response import challenge_header

MAX_ERROR_BODY = 64 << 10
"""Bytes of an error's body that are read."""


class RedirectTargetRefused(Unavailable):
    """The registry answered with a redirect, and the redirect's target refused the request."""


def error_of_registry(response: HttpResponse, kind: str, repository: str, body: bytes) -> RegistryError:
    """Return the error for a response of the registry's own origin."""
    code, message = _first_error(body)
    detail = {
        "repository": repository,
        "upstream_status": response.status,
        "upstream_code": code,
        "upstream_message": message,
    }
    match response.status:
        case 401:
            return Unauthorized("authentication required", challenge_header(response) or "", detail)
        case 403:
            return Denied("requested access to the resource is denied", detail)
        case 404 if kind == "blob":
            return BlobUnknown("blob unknown to registry", detail)
        case 404:
            return ManifestUnknown("manifest unknown", detail)
        case 429:
            return TooManyRequests("rate limit of the upstream exceeded", retry_after(response))
        case status if status >= 500:
            return Unavailable(f"upstream answered {status}", detail)
        case status:
            return BadUpstream(f"upstream answered {status}", detail)


def error_of_redirect_target(response: HttpResponse, kind: str, repository: str, body: bytes) -> RegistryError:
    """Return the error for a response of a redirect's target: a CDN, a bucket, another registry.

    Its status proves nothing about who may read, which content exists, or the registry's rate limit: a 403 is a
    signature that has expired, a 404 an object that is missing in a bucket. Such conditions are temporary, and a new
    redirect may lead to another target. Only a 404 of another registry (registry.k8s.io redirects manifests to one)
    means that the manifest does not exist.
    """
    if response.status == 404 and response.url.path.startswith("/v2/"):
        return error_of_registry(response, kind, repository, body)
    detail = {"repository": repository, "upstream_status": response.status}
    message = f"upstream redirected to {response.url.host}, which answered {response.status}"
    return RedirectTargetRefused(message, detail)


def _first_error(body: bytes) -> tuple[str | None, str | None]:
    """Return code and message of the first error in the body (distribution spec, "Error Codes"); None where absent."""
    try:
        document = read_json(body, MAX_ERROR_BODY)
        error = document["errors"][0]  # type: ignore[index]  # other forms raise one of the errors below
        code, message = error["code"], error["message"]
    except (ValueError, LookupError, TypeError):
        return None, None
    # No `str()` of other types: of nested lists it would recurse without a bound.
    return (code[:100], message[:500]) if isinstance(code, str) and isinstance(message, str) else (None, None)
