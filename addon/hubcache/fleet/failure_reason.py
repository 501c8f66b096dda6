"""Says in one line why a request to the bucket failed.

Errors of obstore have no fields. Their first line names the request; the following ones, a dump of Rust's values,
contain the cause. Errors that a bucket reports are XML ("Error Responses" of the Amazon S3 API).
"""

import re

_XML_CODE = re.compile("<Code>([A-Za-z]+)</Code>")
_ATTEMPTS = re.compile(r" in [0-9.]+(?:[nµm]?s)(?:, after \d+ retries, max_retries: \d+, retry_timeout: \w+)?  ?- ")
"""Duration and number of attempts, which would make each message a new one."""

_UNCLEAR = re.compile("HTTP error: (?:error sending request|request or response body error)$")
_CAUSE = re.compile(r'\b(?:message|error): "([^"\\\n]+)"')
_TIMED_OUT = re.compile(r"\bkind: (?:Timeout|TimedOut)\b|\bTimedOut\b")


def failure_reason(error: Exception) -> str:
    """Return the request that failed and the cause, as far as they are known."""
    text = str(error)
    if not text:
        return "timed out" if isinstance(error, TimeoutError) else type(error).__name__
    line, _, details = text.partition("\n")
    line, xml, _ = _ATTEMPTS.sub(": ", line).partition("<?xml")
    if xml:
        code = _XML_CODE.search(text)
        return f"{line}{code[1]}" if code else line.rstrip(": ")
    return _UNCLEAR.sub(lambda unclear: _cause(details) or unclear[0], line.rstrip(": "))


def _cause(details: str) -> str | None:
    """Return the cause of a failed transfer, None where it is not known."""
    if _TIMED_OUT.search(details):
        return "timed out"
    found = _CAUSE.search(details)
    return found[1] if found else None
