"""The result of a soak as rows of a table."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One promise under one fault: the part of the soak that tests it, what that part found, and whether it holds."""

    fault: str
    part: str
    promise: str
    found: str
    holds: bool


def table(rows: Iterable[Row]) -> str:
    """A Markdown table; consecutive rows with the same fault name it once."""
    lines, last = ["| fault | promise | tested by | last result |", "|---|---|---|---|"], ""
    for row in rows:
        verdict = "" if row.holds else "**broken**: "
        fault = row.fault if row.fault != last else ""
        lines.append(f"| {fault} | {row.promise} | `{row.part}` | {verdict}{row.found} |")
        last = row.fault
    return "\n".join(lines)
