"""Media types of manifests, and the `Accept` negotiation that decides what a tag answers."""

import re

from .json_reader import read_json
from .manifest import MAX_MANIFEST

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCTET_STREAM = "application/octet-stream"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
COMMON_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

_ALL_COMMON = ", ".join(COMMON_TYPES)
"""One object for all who remember it."""
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
"""RFC 6838 section 4.2."""

_MAX_TYPES = 32
_MAX_LENGTH = 255
"""Characters of a media type (RFC 6838 section 4.2 allows 127 for each half)."""


def normalize_accept(accept: str | None) -> str:
    """The `Accept` header to send upstream for a client's; equal results mean "would get the same answer".

    dockerd, containerd, podman and skopeo all list the four common types beside various older ones, so they share one
    value. A client that leaves one of the four out (it cannot handle an index, say) gets a value of its own and so
    what the upstream would give it. Ranges with `q=0` are refusals. More than 32 types are cut: no client sends them.
    """
    accepted = set()
    for item in (accept or "*/*").split(","):
        media_type, *parameters = (part.strip().lower() for part in item.split(";"))
        if 0 < len(media_type) <= _MAX_LENGTH and not any(
            p.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for p in parameters
        ):
            accepted.add(media_type)
    if accepted.issuperset(COMMON_TYPES):
        return _ALL_COMMON
    return ", ".join(sorted(accepted)[:_MAX_TYPES]) or "*/*"


def media_type_of(body: bytes) -> str | None:
    """The media type of a manifest as its bytes tell it; None where they do not (schema 1, or no manifest at all).

    By the field `mediaType`, else by the structure (OCI image-spec, manifest.md and image-index.md: the field is
    optional there). What a registry says is not asked: it may be another's content that it speaks of.
    """
    try:
        document = read_json(body, MAX_MANIFEST)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    told = document.get("mediaType")
    if isinstance(told, str) and _TYPE.fullmatch(told):
        return told
    if document.get("schemaVersion") == 1:
        return None
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    return OCI_MANIFEST if "layers" in document or "config" in document else None
