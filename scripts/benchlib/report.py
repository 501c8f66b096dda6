"""The results for the README: a table in Markdown and a picture. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from .stats import Summary
from .table import number

ROWS = (
    ("stored 400 MB blob, 1 client", "warm-blob-1", "MB/s"),
    ("the same, 8 clients", "warm-blob-8", "MB/s"),
    ("stored image of 400 MB, 1 client", "warm-image-1", "MB/s"),
    ("stored image of 400 MB, 8 clients", "warm-image-8", "MB/s"),
    ("stored manifest, new connection each, 8 clients", "manifest-new", "requests/s"),
    ("its first byte", "manifest-new", "p99 ms"),
    ("stored manifest, kept connections, 8 clients", "manifest-kept", "requests/s"),
    ("stored 4 KB blob, new connection each, 8 clients", "blob-new", "requests/s"),
    ("new blob, 24 clients: last one against a lone client", "cold-blob", "last/lone"),
    ("longest wait of these for a byte that was there", "cold-blob", "waited ms"),
    ("new image, 24 clients: last one against a lone client", "cold-image", "last/lone"),
    ("its bytes from upstream, of the image's", "cold-image", "upstream x"),
    ("the same while 200 other images are pulled", "mixed", "last/lone"),
    ("its bytes from upstream", "mixed", "upstream x"),
    ("new image by skopeo, uplink of 50 MB/s", "cold-pull-uplink", "s"),
    ("new image by skopeo, uplink of 1 Gbit/s", "cold-pull-gigabit", "s"),
    ("new image by skopeo, upstream on the same two cores", "cold-pull", "s"),
    ("stored image by skopeo", "warm-pull", "s"),
    ("its requests to upstream", "warm-pull", "upstream requests"),
    ("32 clients of a stored 1 GB blob: memory of the largest process", "memory-warm", "peak MB"),
    ("32 clients of four new 1 GB blobs: the same", "memory-cold", "peak MB"),
)
SERVERS = {
    "ours": "hubcache",
    "ours-workers": "hubcache, a worker per core",
    "nginx": "nginx, files at hand",
    "nginx-cache": "nginx `proxy_cache`",
    "docker-registry": "docker-registry",
    "drayage": "drayage",
    "direct": "no cache",
}
PANELS = (
    ("stored blob, 8 clients: MB/s", "warm-blob-8", "MB/s"),
    ("stored image, 8 clients: MB/s", "warm-image-8", "MB/s"),
    ("stored manifest, new connections: requests/s", "manifest-new", "requests/s"),
    ("new image, 24 clients: seconds of the last", "cold-image", "last s"),
    ("the same beside 200 other pulls: seconds", "mixed", "last s"),
    ("new image by skopeo, fast upstream: seconds", "cold-pull", "s"),
)

_UNITS = {"last/lone": "x", "upstream x": "x", "upstream requests": "", "peak MB": "MB"}

type Document = Mapping[str, Any]
"""What `--json` wrote."""

_WIDTH, _ROW, _LABEL, _GAP, _COLUMNS = 190, 20, 150, 30, 3


def markdown(document: Document) -> str:
    """Where it was measured, the medians, and the goals that were missed."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {_version(told)}" for name, told in machine["versions"].items())
    where = f"Medians, measured on {machine['cores']} cores that load generator, upstream and cache share: "
    rows = [f"{where}Linux {_version(machine['kernel'])}, Python {machine['python']}, {versions}.", ""]
    rows += ["| | | " + " | ".join(SERVERS.values()) + " |", "|---" * (len(SERVERS) + 2) + "|"]
    for label, workload, figure in ROWS:
        medians = _medians(document, workload, figure)
        if medians:
            cells = (number(medians[name]) if name in medians else "" for name in SERVERS)
            rows.append(f"| {label} | {_UNITS.get(figure, figure)} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *_missed(document)])


def _version(text: str) -> str:
    """What looks like a version in what a program says of itself."""
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else text


def _missed(document: Document) -> Iterator[str]:
    missed = [
        f"- {workload}, {goal['wanted']}: {number(goal['value'])}"
        for workload, measured in document["workloads"].items()
        for goal in measured["targets"]
        if not goal["reached"]
    ]
    if missed:
        yield from ("Goals of ours that were missed (workload, goal: measured):", "", *missed)
    else:
        yield "All goals that `scripts/bench` knows were reached."


def svg(document: Document) -> str:
    """Bars for those of some workloads that were measured; ours are coloured."""
    panels = [
        (title, medians) for title, workload, figure in PANELS if (medians := _medians(document, workload, figure))
    ]
    tallest = max((len(medians) for _, medians in panels), default=0)
    across, down = _LABEL + _WIDTH + _GAP + 50, 44 + tallest * _ROW
    width, height = _COLUMNS * across, -(-len(panels) // _COLUMNS) * down
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<title>hubcache beside its peers</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for place, (title, medians) in enumerate(panels):
        parts += _bars(place % _COLUMNS * across, place // _COLUMNS * down, title, medians)
    return "\n".join([*parts, "</svg>", ""])


def _bars(left: int, top: int, title: str, medians: Mapping[str, float]) -> Iterator[str]:
    yield f'<text x="{left + 12}" y="{top + 22}" font-weight="600">{escape(title)}</text>'
    longest = max(medians.values(), default=1.0) or 1.0
    for place, (name, value) in enumerate(medians.items()):
        down, length = top + 34 + place * _ROW, _WIDTH * value / longest
        colour = "#0b6e4f" if name.startswith("ours") else "#9aa5b1"
        label = escape(SERVERS[name].replace("`", "").replace("a worker per core", "workers"))
        yield f'<text x="{left + _LABEL}" y="{down + 12}" text-anchor="end" fill="#333">{label}</text>'
        yield f'<rect x="{left + _LABEL + 8}" y="{down}" width="{length:.1f}" height="{_ROW - 5}" fill="{colour}"/>'
        yield f'<text x="{left + _LABEL + 14 + length:.1f}" y="{down + 12}" fill="#333">{number(value)}</text>'


def _medians(document: Document, workload: str, figure: str) -> dict[str, float]:
    values: Mapping[str, Mapping[str, Sequence[float]]] = document["workloads"].get(workload, {}).get("values", {})
    return {name: Summary.of(values[name][figure]).median for name in SERVERS if figure in values.get(name, {})}
