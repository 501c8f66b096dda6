"""Writes numbers, times and names of others as text for people."""

import time
import unicodedata

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of Unicode whose characters move the cursor, change the direction or are not seen."""
_DURATIONS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def clean(text: object) -> str:
    """Return a text in one line, with control characters as escapes: names come from clients and registries."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _UNSAFE else char for char in str(text)
    )


def size(count: float | None) -> str:
    """Return bytes in the largest unit of which there is one, such as `48.4 MiB`."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while round(abs(value), 1) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{value:.0f} {_UNITS[0]}"


def duration(seconds: float | None) -> str:
    """Return seconds in one unit, such as `3 h`; below ten seconds with fractions."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    length, unit = next((length, unit) for length, unit in _DURATIONS if seconds >= length)
    return f"{seconds / length:.0f} {unit}"


def age(at: float | None, now: float | None = None) -> str:
    """Return how long ago a time was, such as `3 h ago`, or how far ahead it is; `at` is seconds since the epoch."""
    if not at:
        return "-"
    passed = (time.time() if now is None else now) - at
    seconds = round(abs(passed))
    if seconds == 0:
        return "now"
    text = f"{seconds} s" if seconds < 60 else duration(seconds)
    return f"{text} ago" if passed > 0 else f"in {text}"


def percent(part: float | None, whole: float | None) -> str:
    """Return a share in percent; a dash when there is no whole."""
    if part is None or not whole:
        return "-"
    return f"{100 * part / whole:.0f} %"


def short_digest(digest: str) -> str:
    """Return the beginning of a digest, as docker shows it: 12 hexadecimal digits."""
    return digest.rpartition(":")[2][:12]


def counted(count: int, noun: str) -> str:
    """Return a number with a noun, such as `1 object` or `2 objects`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
