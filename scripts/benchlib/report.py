"""Formats the results for the README: a table in Markdown, and a chart."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .stats import Summary
from .table import number

ROWS = (
    ("stored 400 MB blob, 1 client", "warm-blob-1", "MB/s"),
    ("stored 400 MB blob, 8 clients", "warm-blob-8", "MB/s"),
    ("stored image of 400 MB, 1 client", "warm-image-1", "MB/s"),
    ("stored image of 400 MB, 8 clients", "warm-image-8", "MB/s"),
    ("stored manifest, new connections, 8 clients", "manifest-new", "requests/s"),
    ("stored manifest, new connections: time to first byte", "manifest-new", "p99 ms"),
    ("stored manifest, persistent connections, 8 clients", "manifest-persistent", "requests/s"),
    ("stored 4 KB blob, new connections, 8 clients", "blob-new", "requests/s"),
    ("50 machines, 10 images each, half of them new, uplink of 1 Gbit/s", "crowd", "makespan s"),
    ("the same: time to the first byte", "crowd", "first byte p99 ms"),
    ("new blob: last of 24 clients, compared with a single client", "cold-blob", "last/single"),
    ("new blob: longest wait of 24 clients for a byte that the cache had", "cold-blob", "waited ms"),
    ("new image: last of 24 clients, compared with a single client", "cold-image", "last/single"),
    ("new image: bytes fetched, compared with its size", "cold-image", "upstream x"),
    ("new image during pulls of 200 others: last of 24 clients", "mixed", "last/single"),
    ("new image during pulls of 200 others: bytes fetched", "mixed", "upstream x"),
    ("new image by skopeo, uplink of 50 MB/s", "cold-pull-uplink", "s"),
    ("new image by skopeo, uplink of 1 Gbit/s", "cold-pull-gigabit", "s"),
    ("new image by skopeo, unlimited uplink", "cold-pull", "s"),
    ("stored image by skopeo", "warm-pull", "s"),
    ("stored image by skopeo: requests to the upstream registry", "warm-pull", "upstream requests"),
    ("stored 1 GB blob, 32 clients: memory of the largest process", "memory-warm", "peak MB"),
    ("four new 1 GB blobs, 32 clients: memory of the largest process", "memory-cold", "peak MB"),
)
"""Rows of the table: label, workload and figure."""

LABELS = {
    "hubcache": "hubcache",
    "hubcache-workers": "hubcache, a worker per core",
    "nginx": "nginx, static files",
    "nginx-cache": "nginx `proxy_cache`",
    "docker-registry": "docker-registry",
    "drayage": "drayage",
    "direct": "no cache",
}
"""Servers of the table and the chart."""

PANELS = (
    ("Stored blob, 8 clients: MB/s (more is better)", "warm-blob-8", "MB/s"),
    ("Stored image, 8 clients: MB/s (more is better)", "warm-image-8", "MB/s"),
    ("Stored manifest: requests/s (more is better)", "manifest-new", "requests/s"),
    ("New image, last of 24 clients: s (less is better)", "cold-image", "last s"),
    ("The same during other pulls: s (less is better)", "mixed", "last s"),
    ("New image by skopeo: s (less is better)", "cold-pull", "s"),
)
"""Panels of the chart: title, workload and figure."""

_UNITS = {"last/single": "x", "upstream x": "x", "upstream requests": "", "peak MB": "MB"}

type Document = Mapping[str, Any]
"""The content of a file that `--json` wrote."""


def markdown(document: Document) -> str:
    """The machine, a table of medians, and the targets that were missed."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {_version(output)}" for name, output in machine["versions"].items())
    where = f"Medians, measured on {machine['cores']} cores shared by clients, cache and upstream registry: "
    rows = [f"{where}Linux {_version(machine['kernel'])}, Python {machine['python']}, {versions}.", ""]
    rows += ["| | | " + " | ".join(LABELS.values()) + " |", "|---" * (len(LABELS) + 2) + "|"]
    for label, workload, figure in ROWS:
        medians = _medians(document, workload, figure)
        if medians:
            cells = (number(medians[name]) if name in medians else "" for name in LABELS)
            rows.append(f"| {label} | {_UNITS.get(figure, figure)} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *_missed(document)])


def _version(text: str) -> str:
    """The version number in the output of `PROGRAM --version`."""
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else text


def _missed(document: Document) -> Iterator[str]:
    missed = [
        f"- {workload}, {target['target']}: {number(target['value'])}"
        for workload, measured in document["workloads"].items()
        for target in measured["targets"]
        if not target["reached"]
    ]
    if missed:
        yield from ("Targets that hubcache missed (workload, target: measured value):", "", *missed)
    else:
        yield "hubcache reached all targets of `scripts/bench`."


def svg(document: Document) -> str:
    """A bar chart of some workloads as SVG, with the bars of hubcache highlighted."""
    import charts  # here, because matplotlib takes half a second to import

    labels = {name: label.replace("`", "").replace("a worker per core", "workers") for name, label in LABELS.items()}
    panels = []
    for title, workload, figure in PANELS:
        values = {labels[name]: median for name, median in _medians(document, workload, figure).items()}
        if values:
            panels.append(charts.BarPanel(title, values, {label: number(value) for label, value in values.items()}))
    highlighted = frozenset(label for name, label in labels.items() if name.startswith("hubcache"))
    return charts.svg(charts.bar_chart(panels, highlighted), "hubcache compared with other caches")


def _medians(document: Document, workload: str, figure: str) -> dict[str, float]:
    values: Mapping[str, Mapping[str, Sequence[float]]] = document["workloads"].get(workload, {}).get("values", {})
    return {name: Summary.of(values[name][figure]).median for name in LABELS if figure in values.get(name, {})}
