"""Draws hit ratios over the cache size as SVG: one panel each for requests, bytes and whole images."""

from collections.abc import Mapping

import charts

from .replay import Curve

_PANELS = {"objects": "Hits of requests, %", "bytes": "Hits of bytes, %", "images": "Hits of whole images, %"}


def chart(title: str, curves: Mapping[str, Curve], bounds: frozenset[str] = frozenset()) -> str:
    """The text of an SVG file. The curves in `bounds` are dashed."""
    panels = [
        charts.LinePanel(
            panel_title,
            [
                charts.Line(name, [(100 * size, 100 * getattr(score, field)) for size, score in curve], name in bounds)
                for name, curve in curves.items()
            ],
        )
        for field, panel_title in _PANELS.items()
    ]
    return charts.svg(charts.line_chart(title, "cache size, % of all distinct bytes", panels), title)
