"""Errors with the codes of the OCI distribution spec.

Every error that a client may see is a `RegistryError`; it carries the HTTP status and renders the JSON body that
clients parse. Anything else (an upstream that lies, a store that is full) is translated into one of these in `serve`.
"""

import json
from typing import ClassVar, Self


class HubcacheError(Exception):
    """Root of all errors this package raises."""

    def without_traceback(self) -> Self:
        """The same error, never raised. One that is kept and raised many times would keep the frames of all who were
        told it, with all that their clients said."""
        error = type(self).__new__(type(self), *self.args)
        vars(error).update(vars(self))
        return error


class RegistryError(HubcacheError):
    """An error to be answered to a client as `{"errors": [{"code", "message", "detail"}]}`.

    Codes and statuses: OCI distribution-spec, "Error Codes"; those outside the spec's table (`UNAVAILABLE`,
    `RANGE_INVALID`, `UNKNOWN`) are distribution's own, which all clients know.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, detail: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail

    def add_context(self, what: str) -> None:
        """Say of what this is an error, before it is raised again."""
        self.message = f"{what}: {self.message}"
        self.args = (self.message,)

    def body(self) -> bytes:
        """The JSON body of the answer."""
        error = {"code": self.code, "message": self.message, "detail": self.detail}
        return json.dumps({"errors": [error]}).encode()

    def headers(self) -> dict[str, str]:
        """Headers beside `Content-Type` that belong to this error."""
        return {}


class NameInvalid(RegistryError):
    """The repository name or the URL path is malformed."""

    status, code = 400, "NAME_INVALID"


class DigestInvalid(RegistryError):
    """A digest is malformed, or content does not match its digest."""

    status, code = 400, "DIGEST_INVALID"


class ManifestInvalid(RegistryError):
    """A manifest or a tag is malformed."""

    status, code = 400, "MANIFEST_INVALID"


class HeaderInvalid(RegistryError):
    """RFC 9110 section 5.5: a header of the request has a value that no header may have."""

    status, code = 400, "UNSUPPORTED"


class NameUnknown(RegistryError):
    """There is nothing under this path."""

    status, code = 404, "NAME_UNKNOWN"


class ManifestUnknown(RegistryError):
    """The upstream has no such manifest."""

    status, code = 404, "MANIFEST_UNKNOWN"


class BlobUnknown(RegistryError):
    """The upstream has no such blob."""

    status, code = 404, "BLOB_UNKNOWN"


class Unauthorized(RegistryError):
    """The anonymous view may not see this; `challenge` is what makes a logged-in client authenticate and ask again."""

    status, code = 401, "UNAUTHORIZED"

    def __init__(self, message: str, challenge: str, detail: object = None) -> None:
        super().__init__(message, detail)
        self.challenge = challenge

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": self.challenge} if self.challenge else {}


class Denied(RegistryError):
    """The upstream refused with 403."""

    status, code = 403, "DENIED"


class Unsupported(RegistryError):
    """The request is of a kind that this door does not serve."""

    status, code = 405, "UNSUPPORTED"


class RangeInvalid(RegistryError):
    """RFC 9110 section 15.5.17: no byte of the representation is inside the range asked for."""

    status, code = 416, "RANGE_INVALID"

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message, {"size": size})
        self.size = size

    def headers(self) -> dict[str, str]:
        return {"Content-Range": f"bytes */{self.size}"}


class TooManyRequests(RegistryError):
    """The upstream's rate limit is used up; `retry_after` is in seconds."""

    status, code = 429, "TOOMANYREQUESTS"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


class BadUpstream(RegistryError):
    """The upstream answered, but with something that cannot be served: wrong bytes, wrong length, not a manifest."""

    status, code = 502, "UNAVAILABLE"


class Unavailable(RegistryError):
    """The upstream cannot be reached, or answers 5xx."""

    status, code = 503, "UNAVAILABLE"


class UpstreamNotContacted(Unavailable):
    """The upstream was not even tried."""


class FillCancelled(RegistryError):
    """What was being fetched is not fetched to its end, because nobody waits for it."""

    status, code = 503, "UNAVAILABLE"


class ContentTooLarge(RegistryError):
    """RFC 9110 section 15.5.14: the request's body is larger than this proxy reads."""

    status, code = 413, "SIZE_INVALID"


class HeadersTooLarge(RegistryError):
    """RFC 6585 section 5: the request's head is larger than this proxy reads."""

    status, code = 431, "UNSUPPORTED"


class StorageError(HubcacheError):
    """The store cannot take or give content (full, unwritable, damaged). Pulls go on without it."""


class StoreDamaged(StorageError):
    """The index is not what it was written as; it has to be begun anew."""


class ContentDamaged(StorageError):
    """Stored content is not what its digest says, or the disk cannot read it."""


class NotStored(StorageError):
    """Content is not to be stored, by the rules: nothing is wrong, it is passed on."""


class StoreTooNew(HubcacheError):
    """The store directory was written by a later format than this program reads."""


class ConfigError(HubcacheError):
    """An option has a value that cannot be used; the message names option, value and what is expected."""
