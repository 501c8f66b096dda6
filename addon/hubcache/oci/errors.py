"""Errors, with the codes of the distribution spec ("Error Codes").

Every error that a client may receive is a `RegistryError`; it has an HTTP status and renders the JSON body that clients
parse. `serve` translates other errors (a full store) into one of these, or answers without the store.
"""

import json
from typing import ClassVar, Self


class HubcacheError(Exception):
    """Base class of all errors that this package raises."""

    def without_traceback(self) -> Self:
        """Return an equal error that was never raised. One that is kept and raised repeatedly would keep the frames of
        all requests that received it, with their headers."""
        error = type(self).__new__(type(self), *self.args)
        vars(error).update(vars(self))
        return error


class RegistryError(HubcacheError):
    """An error that a client receives as `{"errors": [{"code", "message", "detail"}]}`.

    Codes and statuses are those of the distribution spec, "Error Codes". The codes outside the spec's table
    (`UNAVAILABLE`, `RANGE_INVALID`, `UNKNOWN`) are those of the implementation distribution/distribution, which all
    clients know.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"
    answered_at: float | None = None
    """When the registry gave this answer, in seconds since the epoch, if that was before it was requested here."""

    def __init__(self, message: str, detail: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail

    def add_context(self, context: str) -> None:
        """Prefix the message, before the error is raised again."""
        self.message = f"{context}: {self.message}"
        self.args = (self.message,)

    def body(self) -> bytes:
        """Return the JSON body of the response."""
        error = {"code": self.code, "message": self.message, "detail": self.detail}
        return json.dumps({"errors": [error]}).encode()

    def headers(self) -> dict[str, str]:
        """Return the headers of the response, without `Content-Type`."""
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
    """A header of the request has an invalid value (RFC 9110 section 5.5)."""

    status, code = 400, "UNSUPPORTED"


class NameUnknown(RegistryError):
    """The path names nothing that this server has."""

    status, code = 404, "NAME_UNKNOWN"


class ManifestUnknown(RegistryError):
    """The upstream has no such manifest."""

    status, code = 404, "MANIFEST_UNKNOWN"


class BlobUnknown(RegistryError):
    """The upstream has no such blob."""

    status, code = 404, "BLOB_UNKNOWN"


class Unauthorized(RegistryError):
    """Anonymous clients have no access; `challenge` makes a logged-in client authenticate and repeat the request."""

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
    """This listener does not serve requests of this kind."""

    status, code = 405, "UNSUPPORTED"


class RangeInvalid(RegistryError):
    """The requested range contains no byte of the content (RFC 9110 section 15.5.17)."""

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
    """The upstream sent a response that cannot be served: wrong bytes, wrong length, not a manifest."""

    status, code = 502, "UNAVAILABLE"


class Unavailable(RegistryError):
    """The upstream cannot be reached, or answers 5xx."""

    status, code = 503, "UNAVAILABLE"


class UpstreamNotContacted(Unavailable):
    """No request was sent to the upstream."""


class FillCancelled(RegistryError):
    """A fill was cancelled because no client waits for it."""

    status, code = 503, "UNAVAILABLE"


class ContentTooLarge(RegistryError):
    """The request's body is larger than this proxy accepts (RFC 9110 section 15.5.14)."""

    status, code = 413, "SIZE_INVALID"


class HeadersTooLarge(RegistryError):
    """The request's head is larger than this proxy accepts (RFC 6585 section 5)."""

    status, code = 431, "UNSUPPORTED"


class StorageError(HubcacheError):
    """The store cannot store or read content (full, not writable, damaged). Pulls continue without it."""


class StoreDamaged(StorageError):
    """The index is corrupt; it must be rebuilt."""


class ContentDamaged(StorageError):
    """Stored content does not match its digest, or the disk cannot read it."""


class NotStored(StorageError):
    """The admission policy refuses to store this content; clients receive it from the upstream. Not a failure."""


class StoreTooNew(HubcacheError):
    """The store directory has a newer format than this program reads."""


class ConfigError(HubcacheError):
    """An option has an invalid value; the message names the option, its value and what is expected."""
