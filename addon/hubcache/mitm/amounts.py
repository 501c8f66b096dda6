"""Writes sizes and durations as text: `31.2 MB`, `0.4 s`, `3 h`."""

_SIZES = ("B", "kB", "MB", "GB", "TB")
_DURATIONS = ((86400, "d"), (3600, "h"), (60, "min"))


def size(count: int) -> str:
    """Return a number of bytes in decimal units, as Docker Hub and `docker images` show sizes."""
    amount, unit = float(count), 0
    while amount >= 999.5 and unit < len(_SIZES) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{_short(amount)} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """Return a number of seconds in its largest unit, rounded: `3 ms`, `0.4 s`, `25 s`, `3 h`."""
    seconds = max(0.0, seconds)
    for length, unit in _DURATIONS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.0995 else f"{_short(seconds)} s"


def _short(number: float) -> str:
    """Return a number with one decimal below 100, and none where that is zero."""
    return f"{number:.1f}".removesuffix(".0") if number < 99.95 else f"{number:.0f}"
