"""Formats the results as text for a terminal. Pure."""

from collections.abc import Iterable, Sequence

from .stats import Summary
from .targets import Results, targets_of


def number(value: float) -> str:
    """Three significant digits, or every digit of a whole number."""
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(summary: Summary) -> str:
    """The median, followed by the range if the values differ."""
    text = number(summary.median)
    ends = number(summary.low), number(summary.high)
    return text if ends == (text, text) else f"{text} ({ends[0]}-{ends[1]})"


def columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """One line for each row, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def render(name: str, about: str, results: Results, failures: dict[str, str], ratios: Results) -> str:
    """One workload: a row for each server, a row for each pair of servers in `ratios`, and the targets."""
    rows_by_name = {**results, **ratios}
    figures = list(dict.fromkeys(figure for row in results.values() for figure in row))
    rows = [["", *figures]]
    for label, row in rows_by_name.items():
        rows.append([label, *(cell(row[figure]) if figure in row else "-" for figure in figures)])
    lines = [f"{name}: {about}", *(f"  {line}" for line in columns(rows))]
    lines += [f"  {server}: failed, {reason}" for server, reason in failures.items()]
    for target in targets_of(name):
        value = target.value(results)
        if value is not None:
            verdict = "reached" if target.reached(value) else "NOT REACHED"
            lines.append(f"  target {target.describe()}: {number(value)}, {verdict}")
    return "\n".join(lines) + "\n"
