"""Replays a trace of requests with hubcache's retention policy and with other policies, and prints their hit ratios.

hubcache's policy is the module that its store uses. Hit ratios are in percent of requests, of bytes, and of whole
images (pulls whose config and layers were all hits). They do not count the first fifth of the requests. Cache sizes are
in percent of all distinct bytes."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from . import fleet_report
from .candidates import Candidate, Settings, candidates, libcachesim
from .cost import cost
from .fleet import Fleet
from .reader import FORMATS, read, write
from .replay import Curve, Score, replay
from .tables import markdown
from .trace import Trace, TraceError

if TYPE_CHECKING:
    from .generator import Parameters

_EXIT_FAILED = 2
_SIZES = "2,5,10,20"
PRESETS = ("small", "drift", "scan", "death", "large")
"""Names of the traces that can be generated. They are repeated here because the generator needs numpy."""
SEED = 46


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulator. Returns 2 if it could not run."""
    options = _parser().parse_args(arguments)
    try:
        if options.cost:
            print(cost())
        elif options.report:
            print(fleet_report.report(fleet_report.FleetResults.load(options.report)))
        elif options.fleet:
            _run_fleets(options)
        else:
            _run(options)
    except TraceError as error:
        print(f"scripts/simulate: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except OSError as error:
        print(f"scripts/simulate: {error.filename}: {error.strerror}", file=sys.stderr)
        return _EXIT_FAILED
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
    defaults = Settings()
    add(
        "trace",
        nargs="?",
        default="small",
        help=f"a file, or a trace to generate: {', '.join(PRESETS)} (default: small)",
    )
    add("--seed", type=int, default=SEED, metavar="N", help=f"seed of a generated trace (default: {SEED})")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of a generated trace; repeatable",
    )
    add("--sizes", type=_shares, default=_shares(_SIZES), metavar="PERCENT,…", help=f"cache sizes (default: {_SIZES})")
    add(
        "--policies",
        metavar="NAME,…",
        help=f"only these of {', '.join(one.name for one in candidates(defaults, None))}",
    )
    add("--no-libcachesim", action="store_true", help="use own implementations of the policies that libCacheSim has")
    add(
        "--admit-after",
        type=int,
        default=defaults.admit_after,
        metavar="N",
        help="like hubcache_admit_after (default: 2)",
    )
    add(
        "--half-life",
        type=_days,
        default=defaults.half_life,
        metavar="DAYS",
        help="like hubcache_half_life (default: 7)",
    )
    add(
        "--expire-after",
        type=_days,
        default=defaults.expire_after,
        metavar="DAYS",
        help="like hubcache_expire_after (default: 30)",
    )
    add("--svg", type=Path, metavar="FILE", help="write a chart of hit ratio over cache size")
    add("--write", type=Path, metavar="FILE", help="write the trace to a file")
    _add_fleet(parser)
    add(
        "--cost",
        action="store_true",
        help="do not simulate; measure the CPU time of the policy and the time to open a store",
    )
    return parser


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "fleet", "Instead of policies, fleets of several sizes are compared, whose nodes share a bucket."
    )
    add = group.add_argument
    add("--fleet", type=_counts, metavar="NODES,…", help="simulate fleets of these sizes, for example 1,4,16")
    add("--store", type=float, default=2.0, metavar="PERCENT", help="size of each node's store (default: 2)")
    add("--bucket", type=float, default=20.0, metavar="PERCENT", help="size of the bucket (default: 20)")
    add(
        "--lifetime",
        type=float,
        default=30.0,
        metavar="DAYS",
        help="time after which a node is replaced by an empty one; 0 for never (default: 30)",
    )
    add(
        "--own-admission",
        action="store_true",
        help="full stores refuse what is requested rarely, also when the bucket does not have it",
    )
    add("--json", type=Path, metavar="FILE", help="write the results to a file")
    add("--report", type=Path, metavar="FILE", help="do not simulate; print the results in a file")


def _counts(text: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not numbers: {text}") from error
    if counts[0] < 1:
        raise argparse.ArgumentTypeError(f"must be above 0: {text}")
    return counts


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
    chosen = _chosen(options)
    trace = _trace(options)
    print(trace.describe())
    if options.write:
        write(trace, options.write)
    curves = _replay_all(trace, chosen, options.sizes)
    print()
    print(table(chosen, curves, options.sizes))
    if options.svg:
        from .chart import chart  # here, because matplotlib takes half a second to import

        bounds = frozenset(one.name for one in chosen if one.bound)
        options.svg.write_text(chart(trace.name, curves, bounds), encoding="utf-8")


def _run_fleets(options: argparse.Namespace) -> None:
    trace = _trace(options)
    footprint = trace.footprint()
    fleet = Fleet(
        1,
        int(options.store / 100 * footprint),
        int(options.bucket / 100 * footprint),
        options.lifetime * 86400,
        half_life=options.half_life,
        expire_after=options.expire_after,
        admit_after=options.admit_after,
        admits_absent=not options.own_admission,
    )
    results = fleet_report.simulate(trace, fleet, options.fleet)
    if options.json:
        results.save(options.json)
    print(fleet_report.report(results))


def _chosen(options: argparse.Namespace) -> list[Candidate]:
    settings = Settings(options.half_life, options.expire_after, options.admit_after)
    known = candidates(settings, None if options.no_libcachesim else libcachesim())
    if options.policies is None:
        return known
    wanted = options.policies.split(",")
    unknown = set(wanted) - {one.name for one in known}
    if unknown:
        names = ", ".join(one.name for one in known)
        raise TraceError(f"no such policy: {', '.join(sorted(unknown))}; the policies are {names}")
    return [one for one in known if one.name in wanted]


def _trace(options: argparse.Namespace) -> Trace:
    path = Path(options.trace)
    if options.trace not in PRESETS or path.is_file():
        if not path.exists():
            raise TraceError(f"{path} is neither a file nor one of the traces {', '.join(PRESETS)}")
        if options.set:
            raise TraceError("--set can only be used with a generated trace")
        return read(path)
    try:
        from . import generator
    except ModuleNotFoundError as error:
        raise TraceError(f"cannot generate a trace: {error.name} is not installed") from error
    parameters = changed(generator.PRESETS[options.trace], options.set)
    name = " ".join([options.trace, str(options.seed), *options.set])
    return generator.generate(name, options.seed, parameters)


def changed(parameters: "Parameters", assignments: Sequence[str]) -> "Parameters":
    """A copy of the parameters with each `NAME=VALUE` applied. Raises `TraceError`."""
    names = [field.name for field in dataclasses.fields(parameters)]
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in names:
            raise TraceError(f"no parameter {name!r}; the parameters are {', '.join(names)}")
        try:
            value = type(getattr(parameters, name))(text)
        except ValueError as error:
            raise TraceError(f"invalid value for {name}: {text!r}") from error
        parameters = dataclasses.replace(parameters, **{name: value})
    return parameters


def _replay_all(trace: Trace, chosen: list[Candidate], shares: list[float]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    footprint = trace.footprint()
    for candidate in chosen:
        curve: list[tuple[float, Score]] = []
        start = process_time()
        for share in shares:
            if curve and candidate.name == "infinite":
                curve.append((share, curve[0][1]))
            else:
                curve.append((share, replay(trace, candidate.make(trace, int(share * footprint)))))
        curves[candidate.name] = curve
        print(f"{candidate.name}: {process_time() - start:.1f} s", file=sys.stderr, flush=True)
    return curves


def table(chosen: list[Candidate], curves: dict[str, Curve], shares: list[float]) -> str:
    """A Markdown table with a row for each policy and a column for each cache size."""
    rows = [["policy", *(f"{100 * share:g} %" for share in shares), ""]]
    for candidate in chosen:
        scores = [score for _, score in curves[candidate.name]]
        cells = [
            f"{100 * score.objects:.1f}/{100 * score.bytes:.1f}/{100 * score.images:.1f} ({100 * score.written:.0f})"
            for score in scores
        ]
        rows.append([candidate.name, *cells, candidate.about])
    note = (
        "Hit ratios of requests/bytes/whole images in percent; in brackets the bytes written to disk, in percent of "
        "the bytes requested."
    )
    return f"{markdown(rows)}\n\n{note}"
