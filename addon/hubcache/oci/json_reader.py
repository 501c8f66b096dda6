"""The one reader of JSON that clients and upstreams send: bounded, and with one kind of error."""

import json

MAX_JSON = 1 << 20
"""Bytes of a document that are read. Manifests have a bound of their own, in `manifest`."""


def read_json(text: bytes, most: int = MAX_JSON) -> object:
    """The value of a document of at most `most` bytes; raises `ValueError` for a larger one, and for what is no JSON.

    Python's own reader raises `RecursionError` for arrays nested a few thousand deep, and `UnicodeDecodeError` (a
    `ValueError`) for bytes that are no text; who catches the first must know of it, and many a place did not.
    """
    if len(text) > most:
        raise ValueError(f"more than {most} bytes of JSON")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
