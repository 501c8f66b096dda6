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
    ("mirror without TLS: stored 400 MB blob, 1 client", "mirror-blob-1", "MB/s"),
    ("mirror without TLS: stored 400 MB blob, 8 clients", "mirror-blob-8", "MB/s"),
    ("mirror without TLS: stored manifest, new connections, 8 clients", "mirror-manifest-new", "requests/s"),
    (
        "mirror without TLS: stored manifest, persistent connections, 8 clients",
        "mirror-manifest-persistent",
        "requests/s",
    ),
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

FLEET_ROWS = (
    ("200 new images of 2 MB, 16 clients, which want the same at once: last client", "fleet-new-images", "last s"),
    ("the same: bytes fetched, compared with their size", "fleet-new-images", "upstream x"),
    ("the same: requests to the bucket for each image and node", "fleet-new-images", "bucket requests/pull"),
    (
        "200 new images of 2 MB, 4 clients for each node, with which they share a part of the cores: last client",
        "fleet-new-images-limited",
        "last s",
    ),
    (
        "50 clients pull stored and new images, and a node is killed: failed pulls, in the worst round",
        "fleet-kill",
        "failed pulls",
    ),
    ("the same: time until all have pulled", "fleet-kill", "makespan s"),
    ("the same: bytes fetched, compared with the size of the new images", "fleet-kill", "upstream x"),
    ("the same: part of these that the killed node had not uploaded yet", "fleet-kill", "not uploaded x"),
    ("stored image of 400 MB, 1 client", "fleet-warm", "image MB/s"),
    ("stored 400 MB blob, 1 client", "fleet-warm", "blob MB/s"),
    ("the same: requests to the bucket", "fleet-warm", "bucket requests"),
    ("400 MB blob that only the bucket has, 1 client", "fleet-bucket-hit", "MB/s"),
    ("the same, compared with obstore alone", "fleet-bucket-hit", "of obstore"),
    (
        "the same, where the bucket has a machine of its own, compared with obstore alone",
        "fleet-bucket-hit-limited",
        "of obstore",
    ),
)
"""Rows of the table of a fleet; results without its workloads have no such table."""

FLEET_LABELS = {
    "hubcache": "one node without a bucket",
    "hubcache-node": "one node with a bucket",
    "hubcache-fleet": "four nodes with a bucket",
}
"""Servers of the table of a fleet."""

_COLUMNS = {
    "hubcache-mirror": "hubcache",
    "hubcache-mirror-workers": "hubcache-workers",
    "nginx-plain": "nginx",
    "drayage-plain": "drayage",
    "hubcache-limited": "hubcache",
    "hubcache-fleet-limited": "hubcache-fleet",
}
"""Servers that are shown in the column of another one: the label of the row says how they differ."""

PANELS = (
    ("Stored blob, 8 clients: MB/s (more is better)", "warm-blob-8", "MB/s"),
    ("Stored image, 8 clients: MB/s (more is better)", "warm-image-8", "MB/s"),
    ("Stored manifest: requests/s (more is better)", "manifest-new", "requests/s"),
    ("Mirror, stored blob: MB/s (more is better)", "mirror-blob-8", "MB/s"),
    ("Mirror, stored manifest: requests/s (more is better)", "mirror-manifest-new", "requests/s"),
    ("New image, 24 clients: s (less is better)", "cold-image", "last s"),
    ("50 machines pull 10 images: s (less is better)", "crowd", "makespan s"),
    ("New image by skopeo: s (less is better)", "cold-pull", "s"),
)
"""Panels of the chart: title, workload and figure."""

_WORST = ("failed pulls",)
"""Figures of which the highest value of all rounds is shown, not the median."""

_UNITS = {
    "last/single": "x",
    "upstream x": "x",
    "upstream requests": "",
    "peak MB": "MB",
    "last s": "s",
    "makespan s": "s",
    "first byte p99 ms": "p99 ms",
    "failed pulls": "",
    "not uploaded x": "x",
    "image MB/s": "MB/s",
    "blob MB/s": "MB/s",
    "bucket requests": "",
    "bucket requests/pull": "",
    "of obstore": "x",
}

_HEAD_LINES = 2
"""Lines of a table without rows."""

type Document = Mapping[str, Any]
"""The content of a file that `--json` wrote."""


def markdown(document: Document) -> str:
    """The machine, tables of medians, and the targets that were missed."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {_version(output)}" for name, output in machine["versions"].items())
    where = f"Medians, measured on {machine['cores']} cores shared by clients, cache and upstream registry: "
    about = f"{where}Linux {_version(machine['kernel'])}, Python {machine['python']}, {versions}."
    lines = [about, "", *_table(document, ROWS, LABELS), ""]
    fleet = _table(document, FLEET_ROWS, FLEET_LABELS)
    if len(fleet) > _HEAD_LINES:
        lines += ["Caches that share a bucket of SeaweedFS on the same machine:", "", *fleet, ""]
    return "\n".join([*lines, *_missed(document)])


def _table(document: Document, rows: Sequence[tuple[str, str, str]], labels: Mapping[str, str]) -> list[str]:
    """Return the lines of a table; it has no rows for what was not measured."""
    lines = ["| | | " + " | ".join(labels.values()) + " |", "|---" * (len(labels) + 2) + "|"]
    for label, workload, figure in rows:
        medians = _medians(document, workload, figure)
        cells = [number(medians[name]) if name in medians else "" for name in labels]
        if any(cells):
            lines.append(f"| {label} | {_UNITS.get(figure, figure)} | {' | '.join(cells)} |")
    return lines


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
        medians = _medians(document, workload, figure)
        values = {label: medians[name] for name, label in labels.items() if name in medians}
        if values:
            panels.append(charts.BarPanel(title, values, {label: number(value) for label, value in values.items()}))
    highlighted = frozenset(label for name, label in labels.items() if name.startswith("hubcache"))
    return charts.svg(charts.bar_chart(panels, highlighted), "hubcache compared with other caches")


def _medians(document: Document, workload: str, figure: str) -> dict[str, float]:
    values: Mapping[str, Mapping[str, Sequence[float]]] = document["workloads"].get(workload, {}).get("values", {})
    summaries = {_COLUMNS.get(name, name): Summary.of(row[figure]) for name, row in values.items() if figure in row}
    return {name: one.high if figure in _WORST else one.median for name, one in summaries.items()}
