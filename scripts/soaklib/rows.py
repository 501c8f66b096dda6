"""What a soak found, as rows of a table."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A promise under a fault: which part of the soak tests it, what was found, and whether the promise holds."""

    fault: str
    part: str
    promise: str
    found: str
    holds: bool


def table(rows: Iterable[Row]) -> str:
    """For people, and for the README; a fault is told once for all its promises."""
    lines, told = ["| fault | promise | tested by | last result |", "|---|---|---|---|"], ""
    for row in rows:
        verdict = "" if row.holds else "**broken**: "
        fault = row.fault if row.fault != told else ""
        lines.append(f"| {fault} | {row.promise} | `{row.part}` | {verdict}{row.found} |")
        told = row.fault
    return "\n".join(lines)
