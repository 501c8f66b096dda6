"""The results as text. Pure."""

from collections.abc import Iterable, Sequence

from .stats import Summary
from .targets import Results, targets


def number(value: float) -> str:
    """Three significant digits, or all of a whole number."""
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(summary: Summary) -> str:
    """The median, and the range when there is one."""
    text = number(summary.median)
    ends = number(summary.low), number(summary.high)
    return text if ends == (text, text) else f"{text} ({ends[0]}-{ends[1]})"


def columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def render(name: str, about: str, results: Results, failures: dict[str, str]) -> str:
    """One workload: a row per server, then the targets."""
    figures = list(dict.fromkeys(figure for row in results.values() for figure in row))
    rows = [["", *figures]]
    for server, row in results.items():
        rows.append([server, *(cell(row[figure]) if figure in row else "-" for figure in figures)])
    lines = [f"{name}: {about}", *(f"  {line}" for line in columns(rows))]
    lines += [f"  {server}: left out, {why}" for server, why in failures.items()]
    for target in targets(name):
        value = target.value(results)
        if value is not None:
            verdict = "reached" if target.reached(value) else "NOT REACHED"
            lines.append(f"  wanted {target.describe()}: {number(value)}, {verdict}")
    return "\n".join(lines) + "\n"
