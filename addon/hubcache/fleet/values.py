"""The small objects in the bucket: JSON with a format number.

Nodes of several versions use the same bucket. A node ignores fields that it does not know, and treats an object of
another format, or one that is damaged, as absent.
"""

import json
import math
from collections.abc import Mapping

from ..oci.json_reader import read_json

FORMAT = 1

type Fields = Mapping[str, object]


def encode_value(fields: Fields) -> bytes:
    """Return the bytes of an object."""
    return json.dumps({"format": FORMAT, **fields}, separators=(",", ":")).encode()


def decode_value(value: bytes, most: int = 1 << 20) -> Fields | None:
    """Return the fields of an object of at most `most` bytes; None for one that this version cannot read."""
    try:
        fields = read_json(value, most)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and fields.get("format") == FORMAT else None


def text_field(fields: Fields, name: str) -> str | None:
    """Return a field that is a text; None where it is missing or of another type."""
    value = fields.get(name)
    return value if isinstance(value, str) else None


def number_field(fields: Fields, name: str) -> float | None:
    """Return a field that is a finite number and not negative; None for others, and where it is missing."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer with hundreds of digits
        return None
    return number if math.isfinite(number) and number >= 0 else None
