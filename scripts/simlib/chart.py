"""Hit ratio over cache size as an SVG, one panel each for objects, bytes and whole images. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from .replay import Score

type Curve = Sequence[tuple[float, Score]]
"""Cache size as a share of the footprint, and what was reached with it."""

PANELS = (("objects", "requests"), ("bytes", "bytes"), ("images", "whole images"))
COLOURS = ("#0b6e4f", "#c1121f", "#3066be", "#e07a00", "#7b2d8b", "#0096a6", "#8d6e63", "#d63384", "#5c677d", "#606c38")

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 300, 260, 48, 56, 56


def chart(title: str, curves: Mapping[str, Curve], bounds: frozenset[str] = frozenset()) -> str:
    """The picture; those in `bounds` are dashed."""
    width = _LEFT + 3 * _WIDTH + 2 * _GAP + 130
    height = _TOP + _HEIGHT + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="600">{escape(title)}</text>',
    ]
    sizes = sorted({size for curve in curves.values() for size, _ in curve})
    for number, (field, label) in enumerate(PANELS):
        left = _LEFT + number * (_WIDTH + _GAP)
        parts += _panel(left, field, label, sizes, curves, bounds)
    parts += _legend(_LEFT + 3 * _WIDTH + 2 * _GAP + 16, curves, bounds)
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    left: int, field: str, label: str, sizes: list[float], curves: Mapping[str, Curve], bounds: frozenset[str]
) -> Iterator[str]:
    values = [100 * getattr(score, field) for curve in curves.values() for _, score in curve]
    low = max(0, math.floor(min(values, default=0) / 10) * 10)
    high = min(100, math.ceil(max(values, default=100) / 10) * 10)
    high = max(high, low + 10)

    def x(size: float) -> float:
        if len(sizes) < 2:
            return left + _WIDTH / 2
        return left + _WIDTH * math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])

    def y(percent: float) -> float:
        return _TOP + _HEIGHT * (high - percent) / (high - low)

    yield f'<text x="{left}" y="{_TOP - 12}">hits of {label}, %</text>'
    for tick in range(low, high + 1, 10):
        yield f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
        yield f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#555">{tick}</text>'
    bottom, middle = _TOP + _HEIGHT, left + _WIDTH / 2
    for size in sizes:
        yield f'<text x="{x(size):.1f}" y="{bottom + 18}" text-anchor="middle" fill="#555">{100 * size:g}</text>'
    yield f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">cache size, % of all distinct bytes</text>'
    for (name, curve), colour in zip(curves.items(), _colours(curves), strict=True):
        points = [(x(size), y(100 * getattr(score, field))) for size, score in curve]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        dash = ' stroke-dasharray="5 4"' if name in bounds else ""
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        for across, down in points:
            yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.5" fill="{colour}"/>'


def _legend(left: int, curves: Mapping[str, Curve], bounds: frozenset[str]) -> Iterator[str]:
    for number, (name, colour) in enumerate(zip(curves, _colours(curves), strict=True)):
        down = _TOP + 8 + 20 * number
        dash = ' stroke-dasharray="5 4"' if name in bounds else ""
        yield f'<line x1="{left}" x2="{left + 22}" y1="{down}" y2="{down}" stroke="{colour}" stroke-width="2"{dash}/>'
        yield f'<text x="{left + 28}" y="{down + 4}">{escape(name)}</text>'


def _colours(curves: Mapping[str, Curve]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(curves))]
