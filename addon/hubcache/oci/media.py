"""Media types of manifests, and normalized `Accept` headers (RFC 9110 section 12.5.1)."""

import re
from functools import lru_cache

from .json_reader import read_json
from .manifest import MAX_MANIFEST

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCTET_STREAM = "application/octet-stream"

COMMON_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

_ALL_COMMON = ", ".join(COMMON_TYPES)
"""One string object, which many records share."""
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
"""RFC 6838 section 4.2."""

_MAX_CACHED = 1000
"""Characters of an `Accept` header up to which its normalized form is cached; those of clients have 100 to 700."""

_MAX_TYPES = 32
_MAX_LENGTH = 255
"""Characters of a media type (RFC 6838 section 4.2 allows 127 on each side of the slash)."""


def normalize_accept(accept: str | None) -> str:
    """Return the `Accept` header to send upstream for a client's header; equal results mean equal responses.

    dockerd, containerd, podman and skopeo all list the four common types beside various older ones, so they share one
    value. A client that omits one of the four (because it does not support image indexes) gets another value, and so
    the response that the upstream would send to it. Types with `q=0` are not accepted. After 32 types the rest is
    dropped: no client sends more.
    """
    text = accept or "*/*"
    return _cached_normalized(text) if len(text) <= _MAX_CACHED else _normalized(text)


def _normalized(text: str) -> str:
    accepted = set()
    for item in text.split(","):
        media_type, *parameters = (part.strip().lower() for part in item.split(";"))
        if 0 < len(media_type) <= _MAX_LENGTH and not any(
            p.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for p in parameters
        ):
            accepted.add(media_type)
    if accepted.issuperset(COMMON_TYPES):
        return _ALL_COMMON
    return ", ".join(sorted(accepted)[:_MAX_TYPES]) or "*/*"


_cached_normalized = lru_cache(256)(_normalized)


def is_content_type(text: str) -> bool:
    """Whether a text may be the `Content-Type` of a manifest: a media type, perhaps with parameters (RFC 9110 section
    8.3)."""
    media_type = text.partition(";")[0].rstrip(" ")
    return len(text) <= _MAX_LENGTH and text.isascii() and text.isprintable() and bool(_TYPE.fullmatch(media_type))


def media_type_of(body: bytes) -> str | None:
    """Return the media type that a manifest's bytes show; None where they do not (schema 1, or not a manifest).

    This is the field `mediaType`, or else follows from the structure: the field is optional (OCI image-spec,
    manifest.md and image-index.md). A registry's `Content-Type` is not used, since another registry may have sent the
    content.
    """
    try:
        document = read_json(body, MAX_MANIFEST)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    media_type = document.get("mediaType")
    if isinstance(media_type, str) and _TYPE.fullmatch(media_type):
        return media_type
    if document.get("schemaVersion") == 1:
        return None
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    return OCI_MANIFEST if "layers" in document or "config" in document else None
