"""The markers of flows, by which mitmweb and mitmproxy's console show and filter what became of a request.

mitmproxy keeps the name of an emoji in `Flow.marked`, and shows the character that its table has for that name. The
names here are added to that table, each with a character that every font has (all are in ISO 8859-1 or in Microsoft's
WGL4): a machine without an emoji font would show boxes. Their own names also make filters readable (`~marker :stale:`).
"""

from collections.abc import Mapping, MutableMapping
from enum import Enum


class Marker(Enum):
    """What became of a request; the value is the first word of the comment, and the marker's name between colons."""

    HIT = "hit"
    REVALIDATED = "revalidated"
    STALE = "stale"
    MISS = "miss"
    PRIVATE = "private"
    PUSH = "push"
    PASSED = "passed"
    TOKEN = "token"  # noqa: S105
    LOCAL = "local"
    SETUP = "setup"
    TUNNEL = "tunnel"
    REFUSED = "refused"
    ERROR = "error"


CHARACTERS = {
    Marker.HIT: "\N{SQUARE ROOT}",
    Marker.REVALIDATED: "\N{IDENTICAL TO}",
    Marker.STALE: "\N{ALMOST EQUAL TO}",
    Marker.MISS: "\N{DOWNWARDS ARROW}",
    Marker.PRIVATE: "\N{RIGHTWARDS ARROW}",
    Marker.PUSH: "\N{UPWARDS ARROW}",
    Marker.PASSED: "\N{RIGHTWARDS ARROW}",
    Marker.TOKEN: "\N{BULLET}",
    Marker.LOCAL: "\N{BULLET}",
    Marker.SETUP: "\N{BULLET}",
    Marker.TUNNEL: "\N{LEFT RIGHT ARROW}",
    Marker.REFUSED: "!",
    Marker.ERROR: "\N{MULTIPLICATION SIGN}",
}

STANDARD_NAMES = {
    Marker.HIT: ":heavy_check_mark:",
    Marker.REVALIDATED: ":recycle:",
    Marker.STALE: ":hourglass:",
    Marker.MISS: ":arrow_down:",
    Marker.PRIVATE: ":key:",
    Marker.PUSH: ":arrow_up:",
    Marker.PASSED: ":arrow_right:",
    Marker.TOKEN: ":gear:",
    Marker.LOCAL: ":gear:",
    Marker.SETUP: ":gear:",
    Marker.TUNNEL: ":left_right_arrow:",
    Marker.REFUSED: ":no_entry:",
    Marker.ERROR: ":heavy_multiplication_x:",
}
"""Names that every mitmproxy has in its table, for versions whose table is left as it is."""


def add_names(table: MutableMapping[str, str]) -> Mapping[Marker, str]:
    """Add the markers' own names to mitmproxy's table of emoji, and return them."""
    names = {marker: f":{marker.value}:" for marker in Marker}
    for marker, name in names.items():
        table[name] = CHARACTERS[marker]
    return names
