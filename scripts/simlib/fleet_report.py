"""Simulates fleets of several sizes, and keeps and prints the results."""

import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from textwrap import fill
from typing import Any

from . import fleet_cost
from .fleet import CLIENT_EXPONENT, CLIENTS, Fleet, FleetReplay, FleetScore
from .policies import DAY
from .tables import markdown
from .trace import Trace

_WIDTH = 120
_NOTE = (
    "Bytes from the registry are also given relative to those of content that was requested for the first time: what "
    "was evicted from the bucket is fetched again. Hits are those of the node's store / of the store, the other nodes "
    "and the bucket. Without a bucket, each node fetches what its own store does not have."
)


@dataclass(frozen=True, slots=True)
class FleetResults:
    """Scores of fleets on one trace; `trace` describes it."""

    trace: str
    footprint: int
    fleets: tuple[tuple[Fleet, FleetScore], ...]

    def save(self, path: Path) -> None:
        """Write the results to a file. Raises `OSError`."""
        rows = [{"fleet": _fields(fleet), "score": _fields(score)} for fleet, score in self.fleets]
        text = json.dumps({"trace": self.trace, "footprint": self.footprint, "fleets": rows}, indent=1)
        path.write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "FleetResults":
        """Read what `save` has written."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fleets = tuple((Fleet(**row["fleet"]), _score(row["score"])) for row in data["fleets"])
        return cls(data["trace"], data["footprint"], fleets)


def _fields(value: Fleet | FleetScore) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _score(row: dict[str, Any]) -> FleetScore:
    counters = {name: Counter(row[name]) for name in ("requests", "bytes", "bucket")}
    return FleetScore(**(row | counters))


def simulate(trace: Trace, fleet: Fleet, sizes: list[int]) -> FleetResults:
    """Replay the trace on a fleet of each size."""
    fleets = [replace(fleet, nodes=nodes) for nodes in sizes]
    scores = tuple((each, FleetReplay(trace, each).run()) for each in fleets)
    return FleetResults(trace.describe(), trace.footprint(), scores)


def report(results: FleetResults) -> str:
    """Return the results, the cost in the background, and the limits as Markdown."""
    sizes = [fleet.nodes for fleet, _ in results.fleets]
    return "\n\n".join(
        [
            _about(results),
            _table(results),
            fill(_NOTE, _WIDTH),
            fill(fleet_cost.ABOUT, _WIDTH),
            fleet_cost.table(sizes),
            fill(fleet_cost.ABOUT_LIMITS, _WIDTH),
            fleet_cost.limits(),
        ]
    )


def _about(results: FleetResults) -> str:
    fleet = results.fleets[0][0]
    replaced = f"replaced by an empty one every {fleet.lifetime / DAY:g} days" if fleet.lifetime else "never replaced"
    refused = "" if fleet.admits_absent else " Full stores refuse content also when the bucket does not have it."
    text = (
        f"`scripts/simulate --fleet` replays pulls on fleets of several sizes. {results.trace}. Each node has a store "
        f"of {fleet.store / 1e9:,.0f} GB ({100 * fleet.store / results.footprint:.3g} % of all distinct bytes) and is "
        f"{replaced}; the bucket has {fleet.bucket / 1e9:,.0f} GB ({100 * fleet.bucket / results.footprint:.3g} %)."
        f"{refused} The pulls come from {CLIENTS:,} clients (Zipf's distribution with the exponent "
        f"{CLIENT_EXPONENT:g}), which are divided equally among the nodes. The first fifth of the requests is not "
        "counted."
    )
    return fill(text, _WIDTH)


def _table(results: FleetResults) -> str:
    rows = [
        [
            *("nodes", "from the registry", "without a bucket", "from the bucket", "hits of bytes", "hits of requests"),
            *("requests to the bucket, for a pull", "$ for a million pulls"),
        ]
    ]
    rows += [_row(fleet, score) for fleet, score in results.fleets]
    return markdown(rows)


def _row(fleet: Fleet, score: FleetScore) -> list[str]:
    size, count, pulls = score.bytes, score.requests, score.pulls or 1
    cost = fleet_cost.dollars({kind: float(number) for kind, number in score.bucket.items()})
    return [
        f"{fleet.nodes:,}",
        f"{size['registry'] / 1e9:,.0f} GB ({size['registry'] / (score.new_bytes or 1):.2f} x)",
        f"{(size.total() - size['store']) / 1e9:,.0f} GB",
        f"{size['bucket'] / 1e9:,.0f} GB",
        _hits(size),
        _hits(count),
        " + ".join(f"{score.bucket[kind] / pulls:.1f} {kind.upper()}" for kind in ("get", "put")),
        f"{1e6 * cost / pulls:,.0f}",
    ]


def _hits(answered: Counter[str]) -> str:
    total = answered.total() or 1
    return f"{100 * answered['store'] / total:.1f} / {100 * (1 - answered['registry'] / total):.1f} %"
