"""The `Retry-After` header (RFC 9110 section 10.2.3)."""

import email.utils
import time
from datetime import UTC

from .http_response import HttpResponse

_DEFAULT_PAUSE_SECONDS = 60.0
_MAX_PAUSE_SECONDS = 3600.0


def pause_seconds(response: HttpResponse) -> float:
    """Return how long to send no further requests after a 429: the header's value, by default a minute, at most an
    hour."""
    seconds = retry_after(response)
    return min(_DEFAULT_PAUSE_SECONDS if seconds is None else seconds, _MAX_PAUSE_SECONDS)


def retry_after(response: HttpResponse) -> float | None:
    """Return the seconds of a `Retry-After` header, which has seconds or a date; None when it is absent or invalid.

    A date is compared with the response's own `Date` where there is one, since the two clocks may differ.
    """
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value) if len(value) < 8 else None
    until = _timestamp(value)
    if until is None:
        return None
    return max(0.0, until - (_timestamp(response.headers.get("Date", "")) or time.time()))


def _timestamp(text: str) -> float | None:
    """Return an HTTP date (RFC 9110 section 5.6.7, in any of its three forms) in seconds since the epoch."""
    try:
        found = email.utils.parsedate_to_datetime(text)
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
