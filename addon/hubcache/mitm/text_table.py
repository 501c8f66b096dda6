"""Renders tables as text, with a bounded size for rows and cells of any origin."""

from collections.abc import Iterable, Sequence
from itertools import islice

MAX_ROWS = 200
"""Rows that are shown. Large image indexes have some 40."""
MAX_CELL = 160
"""Characters of a cell: more than a sha512 digest has."""


def cell(value: object) -> str:
    """Return a value of a JSON document as one line of printable text; empty for a missing one."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else _short(value)
    line = "".join(each if each.isprintable() else " " for each in text[: 2 * MAX_CELL]).strip()
    return line if len(line) <= MAX_CELL else f"{line[: MAX_CELL - 1]}…"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], count: int) -> list[str]:
    """Return the lines of a table with aligned columns, without columns that are empty; `count` is the number of all
    rows, of which at most `MAX_ROWS` are rendered."""
    shown = [head, *islice(rows, MAX_ROWS)]
    columns = [index for index in range(len(head)) if any(row[index] for row in shown[1:])]
    widths = {index: max(len(row[index]) for row in shown) for index in columns}
    lines = ["  ".join(row[index].ljust(widths[index]) for index in columns).rstrip() for row in shown]
    if count > MAX_ROWS:
        lines.append(f"… {count - MAX_ROWS} more")
    return lines if columns else []


def fields(values: Iterable[tuple[str, object]]) -> list[str]:
    """Return lines of names and values, without those that are missing or empty."""
    rows = [(cell(name), cell(value)) for name, value in values if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in rows]


def _short(value: object) -> str:
    """Return text for a value that is no text; lists are rendered as far as they are shown."""
    if isinstance(value, list):
        return " ".join(item if isinstance(item, str) else _scalar(item) for item in value[:MAX_CELL])
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, dict | list):
        return "{…}" if isinstance(value, dict) else "[…]"
    return str(value)
