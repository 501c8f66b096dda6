"""What commands print: tables and colours on a terminal, aligned plain text in a pipe, or JSON."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .text import clean

_UNLIMITED = 10_000
"""Characters of a line."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers are aligned at the right."""

    title: str
    is_number: bool = False


def number(title: str) -> Column:
    """Return a column that is aligned at the right."""
    return Column(title, is_number=True)


@dataclass(slots=True)
class Output:
    """Standard output and standard error of one command.

    With `is_json`, only `document` and `event` write to standard output, and all other methods that do are silent.
    Texts may come from clients and registries: control characters are escaped, and markup of rich has no effect.
    """

    is_json: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)

    @property
    def is_terminal(self) -> bool:
        """Whether tables are drawn for a person at a terminal."""
        return not self.is_json and self.stdout.isatty()

    def console(self, *, is_error: bool = False, width: int | None = None) -> Console:
        """Return rich's console for standard output or standard error, with the width of the terminal by default."""
        stream = self.stderr if is_error else self.stdout
        has_colour = stream.isatty() and not os.environ.get("NO_COLOR")
        return Console(
            file=stream,
            markup=False,
            highlight=False,
            emoji=False,
            no_color=not has_colour,
            width=width,
        )

    def document(self, document: Any) -> None:
        """Print the whole result as JSON."""
        if self.is_json:
            self.stdout.write(json.dumps(document, indent=2) + "\n")

    def event(self, event: Any) -> None:
        """Print an event of long work as one line of JSON, at once."""
        if self.is_json:
            self.stdout.write(json.dumps(event) + "\n")
            self.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line; `style` is one of rich, for a terminal."""
        if not self.is_json:
            self.console().print(Text(clean(text), style=style), soft_wrap=True)

    def heading(self, text: str) -> None:
        """Print the title of a part, after an empty line."""
        self.line()
        self.line(text, "bold")

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Print names and values, one pair a line; pairs without a value are omitted."""
        rows = [(f"{name}:", value) for name, value in pairs if value not in (None, "")]
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.line(f"{name:<{width}}  {clean(value)}")

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
        """Print a table: drawn on a terminal, else with columns that are separated by two spaces."""
        if self.is_json:
            return
        cells = [[clean(cell) for cell in row] for row in rows]
        if self.is_terminal:
            # In its natural width: the terminal wraps lines, and a digest can be copied from them.
            self.console(width=_UNLIMITED).print(drawn_table(columns, cells))
            return
        widths = [max(len(row[i]) for row in [[each.title for each in columns], *cells]) for i in range(len(columns))]
        for row in [[each.title.upper() for each in columns], *cells]:
            aligned = [
                cell.rjust(width) if column.is_number else cell.ljust(width)
                for cell, width, column in zip(row, widths, columns, strict=True)
            ]
            self.stdout.write("  ".join(aligned).rstrip() + "\n")

    def message(self, text: str, style: str = "") -> None:
        """Print a line to standard error, also beside JSON."""
        self.console(is_error=True).print(Text(clean(text), style=style), soft_wrap=True)

    def warning(self, text: str) -> None:
        """Print a warning to standard error."""
        self.message(f"hubcache: warning: {text}", "yellow")


def drawn_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table for a terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column.title), justify="right" if column.is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table
