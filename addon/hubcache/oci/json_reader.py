"""Reads JSON that clients and upstreams send: bounded, and with one kind of error."""

import json

MAX_JSON = 1 << 20
"""Default limit in bytes. Manifests have their own limit, in `manifest`."""


def read_json(text: bytes, most: int = MAX_JSON) -> object:
    """Return the value of a document of up to `most` bytes; raises `ValueError` for others and invalid JSON.

    `json.loads` raises `RecursionError` for arrays that are nested thousands deep, which callers do not expect, and
    `UnicodeDecodeError` (a `ValueError`) for bytes that are not text.
    """
    if len(text) > most:
        raise ValueError(f"more than {most} bytes of JSON")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
