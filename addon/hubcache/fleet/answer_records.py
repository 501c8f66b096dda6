"""What registries answered, as it is written in the bucket: tags, manifests and errors, with the time of each answer.

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

SHARED_ERRORS = (ManifestUnknown, Unauthorized, Denied)
"""Errors that are answers of the registry about the content, and not about its own state."""

_ERRORS: Mapping[str, type[RegistryError]] = {error.code: error for error in SHARED_ERRORS}
_MAX_TEXT = 2000
"""Characters of a media type, a message or a challenge."""


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
    """An error that the registry answered to a request with this `method`; the answer to a HEAD has fewer details."""

    error: RegistryError
    method: str
    at: float

    def applies_to(self, method: str) -> bool:
        """Whether it may be the answer to a request: a GET's answer is complete, a HEAD's is for HEAD only."""
        return self.method in (method, "GET")

    def to_raise(self, answered_at: float) -> RegistryError:
        """Return the error with the local time of the answer, in seconds since the epoch."""
        error = self.error.without_traceback()
        error.answered_at = answered_at
        return error


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
    digest, media_type = _digest(fields), _text(fields, "media_type")
    if digest is None or media_type is None or at is None or size is None or not 0 <= size <= MAX_MANIFEST:
        return _read_error(fields)
    return TagAnswer(digest, media_type, int(size), at)


def write_manifest(answer: ManifestAnswer | ErrorAnswer, node: str) -> Fields:
    """Return the fields of an answer about a digest; `node` is the node that asked the registry."""
    if isinstance(answer, ErrorAnswer):
        return _write_error(answer, node)
    body = base64.b64encode(answer.body).decode()
    return {"media_type": answer.media_type, "body": body, "at": answer.at, "node": node}


def read_manifest(fields: Fields, digest: Digest) -> ManifestAnswer | ErrorAnswer | None:
    """Return an answer about a digest; None when the fields are invalid or the bytes do not match the digest."""
    media_type, at, encoded = _text(fields, "media_type"), number_field(fields, "at"), text_field(fields, "body")
    if media_type is None or at is None or encoded is None:
        return _read_error(fields)
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
        "challenge": error.challenge[:_MAX_TEXT] if isinstance(error, Unauthorized) else None,
        "repository": details.get("repository"),
        "upstream_status": details.get("upstream_status"),
        "upstream_code": details.get("upstream_code"),
        "upstream_message": details.get("upstream_message"),
        "method": answer.method,
        "at": answer.at,
        "node": node,
    }


def _read_error(fields: Fields) -> ErrorAnswer | None:
    kind = _ERRORS.get(text_field(fields, "error") or "")
    message, method, at = _text(fields, "message"), text_field(fields, "method"), number_field(fields, "at")
    if kind is None or message is None or method is None or at is None:
        return None
    status = number_field(fields, "upstream_status")
    detail = {
        "repository": _text(fields, "repository"),
        "upstream_status": int(status) if status is not None and 100 <= status < 600 else None,
        "upstream_code": _text(fields, "upstream_code"),
        "upstream_message": _text(fields, "upstream_message"),
    }
    challenge = _text(fields, "challenge") or ""
    error = Unauthorized(message, challenge, detail) if kind is Unauthorized else kind(message, detail)
    return ErrorAnswer(error, method, at)


def _text(fields: Fields, name: str) -> str | None:
    """Return a text that may become a part of an answer's header or body."""
    text = text_field(fields, name)
    return text if text is not None and len(text) <= _MAX_TEXT and text.isprintable() else None


def _digest(fields: Fields) -> Digest | None:
    try:
        return Digest.parse(text_field(fields, "digest") or "")
    except DigestInvalid:
        return None
