"""Replays a trace of requests against the cache's retention policy and its rivals, and prints what each would have hit.

The project's policy is the module that the store runs, not a copy. Hits are of requests, of bytes, and of whole images
(pulls that asked for configs or layers and got every one from the store), in percent, without the first fifth of the
requests; cache sizes are in percent of all distinct bytes."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from .chart import Curve, chart
from .cost import cost
from .lineup import Entrant, Settings, libcachesim, lineup
from .reader import FORMATS, read, write
from .replay import Score, replay
from .trace import Trace, TraceError

if TYPE_CHECKING:
    from .generator import Parameters

_BROKEN = 2
_SIZES = "2,5,10,20"
PRESETS = ("small", "drift", "scan", "death", "large")
"""Traces that can be made; the generator needs numpy, and the rest does not."""
SEED = 46


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulator; 2 when that cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.cost:
            print(cost())
            return 0
        _run(options)
    except TraceError as error:
        print(f"scripts/simulate: {error}", file=sys.stderr)
        return _BROKEN
    except OSError as error:
        print(f"scripts/simulate: {error.filename}: {error.strerror}", file=sys.stderr)
        return _BROKEN
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description=__doc__,
        epilog=FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    usual = Settings()
    add("trace", nargs="?", default="small", help=f"a file, or one that is made: {', '.join(PRESETS)} (default: small)")
    add("--seed", type=int, default=SEED, metavar="N", help=f"for a trace that is made (default: {SEED})")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of a trace that is made")
    add("--sizes", type=_shares, default=_shares(_SIZES), metavar="PERCENT,…", help=f"cache sizes (default: {_SIZES})")
    add("--policies", metavar="NAME,…", help=f"only these of {', '.join(one.name for one in lineup(usual, None))}")
    add("--own", action="store_true", help="rivals from this program, even where libcachesim is installed")
    add("--admit-after", type=int, default=usual.admit_after, metavar="N", help="as hubcache_admit_after")
    add("--half-life", type=_days, default=usual.half_life, metavar="DAYS", help="as hubcache_half_life (default: 7)")
    add("--expire-after", type=_days, default=usual.expire_after, metavar="DAYS", help="(default: 30)")
    add("--svg", type=Path, metavar="FILE", help="draw hit ratio over cache size")
    add("--write", type=Path, metavar="FILE", help="write the trace as a file")
    add("--cost", action="store_true", help="measure the CPU time of the policy, and the opening of a store, instead")
    return parser


def _shares(text: str) -> list[float]:
    try:
        shares = sorted({float(part) / 100 for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not percentages: {text}") from error
    if not all(0 < share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"percentages must be above 0 and at most 100: {text}")
    return shares


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a number of days: {text}") from error
    if not days > 0:
        raise argparse.ArgumentTypeError(f"must be above 0: {text}")
    return days * 86400


def _run(options: argparse.Namespace) -> None:
    entrants = _chosen(options)
    trace = _trace(options)
    print(trace.describe())
    if options.write:
        write(trace, options.write)
    curves = _replay_all(trace, entrants, options.sizes)
    print()
    print(table(entrants, curves, options.sizes))
    if options.svg:
        bounds = frozenset(one.name for one in entrants if one.bound)
        options.svg.write_text(chart(trace.name, curves, bounds), encoding="utf-8")


def _chosen(options: argparse.Namespace) -> list[Entrant]:
    settings = Settings(options.half_life, options.expire_after, options.admit_after)
    entrants = lineup(settings, None if options.own else libcachesim())
    if options.policies is None:
        return entrants
    wanted = options.policies.split(",")
    unknown = set(wanted) - {one.name for one in entrants}
    if unknown:
        known = ", ".join(one.name for one in entrants)
        raise TraceError(f"no such policy: {', '.join(sorted(unknown))}; there are {known}")
    return [one for one in entrants if one.name in wanted]


def _trace(options: argparse.Namespace) -> Trace:
    path = Path(options.trace)
    if options.trace not in PRESETS or path.is_file():
        if not path.exists():
            raise TraceError(f"no file {path}, and no trace of that name; there are {', '.join(PRESETS)}")
        if options.set:
            raise TraceError("--set is for traces that are made, not for files")
        return read(path)
    try:
        from . import generator
    except ModuleNotFoundError as error:
        raise TraceError(f"to make a trace, {error.name} must be installed") from error
    parameters = changed(generator.PRESETS[options.trace], options.set)
    name = " ".join([options.trace, str(options.seed), *options.set])
    return generator.generate(name, options.seed, parameters)


def changed(parameters: "Parameters", assignments: Sequence[str]) -> "Parameters":
    """The parameters with some `NAME=VALUE` changed; raises `TraceError`."""
    names = [field.name for field in dataclasses.fields(parameters)]
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in names:
            raise TraceError(f"no parameter {name!r}; there are {', '.join(names)}")
        try:
            value = type(getattr(parameters, name))(text)
        except ValueError as error:
            raise TraceError(f"not a value for {name}: {text!r}") from error
        parameters = dataclasses.replace(parameters, **{name: value})
    return parameters


def _replay_all(trace: Trace, entrants: list[Entrant], shares: list[float]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    footprint = trace.footprint()
    for entrant in entrants:
        curve: list[tuple[float, Score]] = []
        start = process_time()
        for share in shares:
            if curve and entrant.name == "infinite":
                curve.append((share, curve[0][1]))
            else:
                curve.append((share, replay(trace, entrant.make(trace, int(share * footprint)))))
        curves[entrant.name] = curve
        print(f"{entrant.name}: {process_time() - start:.1f} s", file=sys.stderr, flush=True)
    return curves


def table(entrants: list[Entrant], curves: dict[str, Curve], shares: list[float]) -> str:
    """Rows of policies and columns of cache sizes."""
    rows = [["policy", *(f"{100 * share:g} %" for share in shares), ""], ["---"] * (len(shares) + 2)]
    for entrant in entrants:
        scores = [score for _, score in curves[entrant.name]]
        cells = [
            f"{100 * score.objects:.1f}/{100 * score.bytes:.1f}/{100 * score.images:.1f} ({100 * score.written:.0f})"
            for score in scores
        ]
        rows.append([entrant.name, *cells, entrant.about])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    note = (
        "Hits of objects/bytes/whole images, and in brackets the bytes written to the disk, in percent of the traffic."
    )
    return "\n".join([*lines, "", note])
