"""Draws the charts of `scripts/bench` and `scripts/simulate` with matplotlib, as SVG for the README.

The same values give the same file: element ids derive from a fixed salt, and the file names no date and no version.
Text is stored as text in a common sans-serif font. The background is white, so that a chart reads on a dark page too.

Import this module only where a chart is drawn: matplotlib takes half a second to import.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import cycle
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.typing import RcKeyType

_HIGHLIGHT, _PLAIN, _TEXT, _GRID = "#0b6e4f", "#9aa5b1", "#24292f", "#d8dee4"
_LINE_COLOURS = (
    *("#0b6e4f", "#c1121f", "#3066be", "#e07a00", "#7b2d8b"),
    *("#0096a6", "#8d6e63", "#d63384", "#5c677d", "#606c38"),
)
_DASHED_COLOURS = ("#24292f", "#8c959f")
_WIDTH = 9.2
"""Inches; about as wide as GitHub shows a README, so that text keeps its size."""

_STYLE: dict[RcKeyType, Any] = {
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],  # the first two are equally wide
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.prop_cycle": cycler(color=_LINE_COLOURS),
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "text.color": _TEXT,
    "text.parse_math": False,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "svg.fonttype": "none",
    "svg.hashsalt": "hubcache",
}


@dataclass(frozen=True, slots=True)
class BarPanel:
    """One group of horizontal bars: a length for each label, from the top down, and the text at the bar's end."""

    title: str
    values: Mapping[str, float]
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel: its points as (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class LinePanel:
    """Lines that share their axes."""

    title: str
    lines: Sequence[Line]


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)


def bar_chart(panels: Sequence[BarPanel], highlighted: frozenset[str], columns: int = 2) -> Figure:
    """Panels of bars in a grid; bars whose label is in `highlighted` are coloured, the others grey."""
    rows = -(-len(panels) // columns)
    tallest = max((len(panel.values) for panel in panels), default=0)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, max(1.0, rows * (0.6 + 0.21 * tallest))), layout=_layout())
        for number, panel in enumerate(panels, 1):
            axes = figure.add_subplot(rows, columns, number)
            _draw_bars(axes, panel, highlighted)
            axes.set_ylim(tallest - 0.4, -0.6)  # the first bar on top, and bars as thick as in the other panels
    return figure


def _draw_bars(axes: Axes, panel: BarPanel, highlighted: frozenset[str]) -> None:
    labels = list(panel.values)
    colours = [_HIGHLIGHT if label in highlighted else _PLAIN for label in labels]
    bars = axes.barh(range(len(labels)), list(panel.values.values()), height=0.75, color=colours)
    axes.bar_label(bars, [panel.texts[label] for label in labels], padding=4)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_title(panel.title)
    axes.tick_params(length=0)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.15)  # for the text at the end of the longest bar


def line_chart(title: str, x_label: str, panels: Sequence[LinePanel]) -> Figure:
    """Panels of lines side by side with one legend below; the x axis is logarithmic, with a tick for each x."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 4.2), layout=_layout())
        figure.suptitle(title, fontsize=10, fontweight="bold")
        for number, panel in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), number)
            _draw_lines(axes, panel)
            axes.set_xlabel(x_label)
        handles, labels = figure.axes[0].get_legend_handles_labels() if panels else ([], [])
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_lines(axes: Axes, panel: LinePanel) -> None:
    axes.set_title(panel.title)
    axes.set_xscale("log")
    greys = cycle(_DASHED_COLOURS)
    for line in panel.lines:
        x, y = zip(*line.points, strict=True)
        form, colour = ("--o", next(greys)) if line.dashed else ("-o", None)
        axes.plot(x, y, form, color=colour, markersize=3.5, label=line.name)
    ticks = sorted({x for line in panel.lines for x, _ in line.points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y")


def svg(figure: Figure, title: str) -> str:
    """The figure as the text of an SVG file; `title` is for screen readers and tooltips."""
    output = StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(output, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    return output.getvalue()
