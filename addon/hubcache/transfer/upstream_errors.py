"""What an upstream's answer means that is no success: each becomes a `RegistryError`, and here only."""

import aiohttp

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
from .session import retry_after
from .upstream_response import challenge_header

MAX_ERROR_BODY = 64 << 10
"""Bytes of an error's body that are read."""


class RedirectTargetRefused(Unavailable):
    """The registry answered with a redirect, and where that leads the request is refused."""


def error_of_registry(response: aiohttp.ClientResponse, kind: str, repository: str, body: bytes) -> RegistryError:
    """What the registry's own origin says by a status that is no success."""
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
            return TooManyRequests("upstream limits our requests", retry_after(response))
        case status if status >= 500:
            return Unavailable(f"upstream answered {status}", detail)
        case status:
            return BadUpstream(f"upstream answered {status}", detail)


def error_of_redirect_target(
    response: aiohttp.ClientResponse, kind: str, repository: str, body: bytes
) -> RegistryError:
    """What is said by whoever the registry redirected to: a CDN, a bucket, another registry.

    It has no say in who may read, in what there is, and in the registry's rate limit: a 403 is a signature that has
    expired, a 404 an object that is missing in a bucket. All that passes, and a new redirect may lead elsewhere. Only
    another registry (registry.k8s.io redirects manifests to one) knows that there is no such manifest.
    """
    if response.status == 404 and response.url.path.startswith("/v2/"):
        return error_of_registry(response, kind, repository, body)
    detail = {"repository": repository, "upstream_status": response.status}
    return RedirectTargetRefused(
        f"upstream redirected to {response.url.host}, which answered {response.status}", detail
    )


def _first_error(body: bytes) -> tuple[str | None, str | None]:
    """The upstream's own code and words, where it speaks the spec's error form."""
    try:
        document = read_json(body, MAX_ERROR_BODY)
        error = document["errors"][0]  # type: ignore[index]  # what is of another form is caught
        code, message = error["code"], error["message"]
    except (ValueError, LookupError, TypeError):
        return None, None
    # Not `str` of whatever it is: of nested lists that would be another recursion.
    return (code[:100], message[:500]) if isinstance(code, str) and isinstance(message, str) else (None, None)
