"""What registries answered, as it is written in the bucket: tags and manifests, with the time of each answer.

Times are those of the bucket's clock, in seconds since the epoch. Whoever can write to the bucket could write anything:
the bytes of a manifest are verified against its digest, and all other fields against their types and bounds.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from ..oci.digest import Digest
from ..oci.errors import Denied, DigestInvalid, ManifestUnknown, RegistryError, Unauthorized
from ..oci.manifest import MAX_MANIFEST
from .values import Fields, number_field, text_field

CONTENT_ERRORS = (ManifestUnknown, Unauthorized, Denied)
"""Errors that are answers of the registry about the content, and not about its own state."""

_MAX_TEXT = 2000
"""Characters of a media type or a message."""


@dataclass(frozen=True, slots=True)
class TagAnswer:
    """The manifest that a tag refers to, with its size in bytes; `at` is the time of the registry's answer."""

    digest: Digest
    media_type: str
    size: int
    at: float


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """The bytes of a manifest, which match its digest.

    `at` is the time of the last answer of the registry that showed that every client may read it. It is 0 when there
    was none: the bytes may come from a request with credentials.
    """

    media_type: str
    body: bytes
    at: float


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """The registry's answer that a tag does not exist in a repository that every client may read."""

    error: ManifestUnknown
    at: float

    def to_raise(self, answered_at: float) -> RegistryError:
        """Return the error with the local time of the answer, in seconds since the epoch."""
        error = self.error.without_traceback()
        error.answered_at = answered_at
        return error


def names_only_the_manifest(error: RegistryError) -> bool:
    """Whether an error says that a manifest is missing from a repository that can be read."""
    return isinstance(error, ManifestUnknown) and _upstream_code(error) == ManifestUnknown.code


def write_tag(answer: TagAnswer | ErrorAnswer, node: str) -> Fields:
    """Return the fields of an answer about a tag; `node` is the node that asked the registry."""
    if isinstance(answer, ErrorAnswer):
        return _write_error(answer, node)
    digest = str(answer.digest)
    return {"digest": digest, "media_type": answer.media_type, "size": answer.size, "at": answer.at, "node": node}


def read_tag(fields: object) -> TagAnswer | ErrorAnswer | None:
    """Return an answer about a tag; None when the fields are invalid."""
    if not isinstance(fields, Mapping):
        return None
    size, at = number_field(fields, "size"), number_field(fields, "at")
    digest, media_type = _digest(fields), _media_type(fields)
    if digest is None or media_type is None or at is None or size is None or not 0 <= size <= MAX_MANIFEST:
        return _read_error(fields)
    return TagAnswer(digest, media_type, int(size), at)


def write_manifest(answer: ManifestAnswer, node: str) -> Fields:
    """Return the fields of a manifest; `node` is the node that asked the registry."""
    body = base64.b64encode(answer.body).decode()
    return {"media_type": answer.media_type, "body": body, "at": answer.at, "node": node}


def read_manifest(fields: Fields, digest: Digest) -> ManifestAnswer | None:
    """Return a manifest; None when the fields are invalid or the bytes do not match the digest."""
    media_type, at, encoded = _media_type(fields), number_field(fields, "at"), text_field(fields, "body")
    if media_type is None or at is None or encoded is None:
        return None
    try:
        body = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return ManifestAnswer(media_type, body, at) if len(body) <= MAX_MANIFEST and digest.matches(body) else None


def _write_error(answer: ErrorAnswer, node: str) -> Fields:
    error, detail = answer.error, answer.error.detail
    details = detail if isinstance(detail, dict) else {}
    return {
        "error": error.code,
        "message": error.message[:_MAX_TEXT],
        "repository": details.get("repository"),
        "upstream_status": details.get("upstream_status"),
        "upstream_code": details.get("upstream_code"),
        "upstream_message": details.get("upstream_message"),
        "at": answer.at,
        "node": node,
    }


def _read_error(fields: Fields) -> ErrorAnswer | None:
    """Return the error of a missing manifest.

    Refusals are never read: a challenge (RFC 9110 section 11.6.1) names the server to which clients send passwords, so
    it must not come from the bucket.
    """
    message, at = _text(fields, "message"), number_field(fields, "at")
    if text_field(fields, "error") != ManifestUnknown.code or message is None or at is None:
        return None
    status = number_field(fields, "upstream_status")
    detail = {
        "repository": _text(fields, "repository"),
        "upstream_status": int(status) if status is not None and 100 <= status < 600 else None,
        "upstream_code": _text(fields, "upstream_code"),
        "upstream_message": _text(fields, "upstream_message"),
    }
    error = ManifestUnknown(message, detail)
    return ErrorAnswer(error, at) if names_only_the_manifest(error) else None


def _upstream_code(error: RegistryError) -> object:
    return error.detail.get("upstream_code") if isinstance(error.detail, dict) else None


def _media_type(fields: Fields) -> str | None:
    """Return a media type that may become a header's value."""
    media_type = _text(fields, "media_type")
    return media_type if media_type is not None and media_type.isascii() else None


def _text(fields: Fields, name: str) -> str | None:
    """Return a text that may become a part of an answer's header or body."""
    text = text_field(fields, name)
    return text if text is not None and len(text) <= _MAX_TEXT and text.isprintable() else None


def _digest(fields: Fields) -> Digest | None:
    try:
        return Digest.parse(text_field(fields, "digest") or "")
    except DigestInvalid:
        return None
