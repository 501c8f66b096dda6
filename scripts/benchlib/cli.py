"""Measures hubcache beside other caches, or beside another checkout of hubcache, and prints a table for each workload.

All servers get the same requests and fetch from the same upstream registry. They take turns: in each round, a workload
runs once with each server, and each round starts with another server."""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import platformdirs

from .certificates import Certificates, make_certificates
from .processes import BenchError
from .report import markdown, svg
from .server import Server, Setup
from .servers import COMPARED, START
from .stats import Summary, ratios
from .table import render
from .targets import Results, targets_of
from .upstream import Upstream, upstream
from .workload import Contents, Workload
from .workloads import WORKLOADS

_PROGRAMS = ("nginx", "curl", "hey", "skopeo", "docker-registry")
_EXIT_FAILED = 2
_BUSY = 1.5
"""Load average of the last minute above which other programs probably disturb the measurement."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 0 even if a target is missed, and 2 if the benchmark could not run."""
    options = _parser().parse_args(arguments)
    if options.list:
        for workload in WORKLOADS:
            print(f"{workload.name:19} {workload.about}")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(options.limit)
    try:
        if options.report:
            _report(options.report, options.svg)
        else:
            _run(options)
    except BenchError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = [workload.name for workload in WORKLOADS]
    add("--list", action="store_true", help="list the workloads and exit")
    add("--only", action="append", metavar="WORKLOAD", choices=names, help="run only this workload; repeatable")
    add("--servers", type=_servers, metavar="NAME,…", help=f"servers for every workload, of: {', '.join(START)}")
    add(
        "--against",
        type=_checkout,
        metavar="DIRECTORY",
        help="another checkout of hubcache; compare this one with it, in mitmdump and mitmweb, and print the ratios",
    )
    add("--quick", action="store_true", help="run two rounds, with smaller images")
    add("--rounds", type=int, metavar="N", help="number of rounds (default: 5, or 2 with --quick)")
    add("--json", type=Path, metavar="FILE", help="write all values to this file")
    add("--report", type=Path, metavar="FILE", help="do not measure; print a file that --json wrote as Markdown")
    add("--svg", type=Path, metavar="FILE", help="with --report: also write a chart to this file")
    add(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="run hubcache with the mitmproxy that is installed beside this Python (default: the one of .venv)",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, help="worker processes of each server (default: cores)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="set an option of hubcache; repeatable")
    add("--limit", type=int, default=3600, metavar="SECONDS", help="give up after this time (default: 3600)")
    return parser


def _servers(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in START]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown server: {', '.join(unknown)}")
    return names


def _checkout(text: str) -> Path:
    path = Path(text).absolute()
    if not (path / "addon" / "cache.py").is_file():
        raise argparse.ArgumentTypeError(f"not a checkout of hubcache: {text} has no addon/cache.py")
    return path


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _out_of_time(_: int, __: FrameType | None) -> None:
    raise BenchError("the time limit was reached (see --limit)")


def _run(options: argparse.Namespace) -> None:
    missing = [program for program in _PROGRAMS if not _installed(program)]
    if missing:
        raise BenchError(f"not installed: {', '.join(missing)} (Debian: apt install {' '.join(missing)})")
    names = options.only or [workload.name for workload in WORKLOADS]
    measured: dict[str, object] = {}
    document = {"machine": _machine(), "quick": options.quick, "workloads": measured}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hubcache-bench-")))
        certificates = make_certificates(directory / "certificates")
        source = stack.enter_context(upstream(directory / "upstream", certificates))
        for workload in (one for one in WORKLOADS if one.name in names):
            measured[workload.name] = _run_workload(workload, options, directory, source, certificates)
            shutil.rmtree(directory / workload.name)
            shutil.rmtree(source.images.root / "v2", ignore_errors=True)
            if options.json:
                options.json.write_text(json.dumps(document, indent=1) + "\n")


def _run_workload(
    workload: Workload, options: argparse.Namespace, directory: Path, source: Upstream, certificates: Certificates
) -> dict[str, object]:
    """Measure and print one workload; returns what `--json` writes."""
    compared = [name for pair in COMPARED.items() for name in pair] if options.against else None
    servers = options.servers or compared or workload.servers
    setup = Setup(
        directory / workload.name,
        source,
        certificates,
        options.python.absolute(),
        [part for value in options.set for part in ("--set", value)],
        _tools() if any(name.startswith("drayage") for name in servers) else directory,
        options.workers,
        options.against,
    )
    load = os.getloadavg()[0]
    rounds = options.rounds or (2 if options.quick else 5)
    values, failures = _measure(workload, setup, servers, min(rounds, workload.rounds), options.quick)
    results = {name: {figure: Summary.of(seen) for figure, seen in row.items()} for name, row in values.items()}
    print(render(workload.name, workload.about, results, failures, compare(values)), flush=True)
    if load > _BUSY:
        print(f"  (unreliable: the load average was {load:.1f} when this workload started)\n")
    return {
        "about": workload.about,
        "load before": load,
        "values": values,
        "failures": failures,
        "targets": _verdicts(workload.name, results),
    }


def _report(results: Path, chart: Path | None) -> None:
    try:
        document = json.loads(results.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read {results}: {error}") from error
    print(markdown(document))
    if chart:
        chart.write_text(svg(document), encoding="utf-8")


Values = dict[str, dict[str, list[float]]]
"""Server → figure → its values in the order of the rounds."""


def _measure(
    workload: Workload, setup: Setup, names: Sequence[str], rounds: int, quick: bool
) -> tuple[Values, dict[str, str]]:
    """The values, and for each server that failed the reason."""
    values: Values = {}
    failures: dict[str, str] = {}
    contents = Contents(setup.upstream, quick)
    with ExitStack() as stack:
        stacks = {name: stack.enter_context(ExitStack()) for name in names}
        servers: dict[str, Server] = {}
        for number in range(rounds):
            first = number % len(names)
            for name in [*names[first:], *names[:first]]:
                if name in failures:
                    continue
                try:
                    if name not in servers:
                        servers[name] = stacks[name].enter_context(START[name](setup))
                    figures = workload.measure(contents, servers[name], number)
                except BenchError as error:
                    failures[name] = str(error)
                    stacks[name].close()  # a fetch that it still runs would slow down the other servers
                    continue
                for figure, value in figures.items():
                    values.setdefault(name, {}).setdefault(figure, []).append(value)
    return {name: values[name] for name in names if name in values}, failures


def compare(values: Values) -> Results:
    """For each server of this checkout, its figures as ratios of those of the other checkout."""
    compared: dict[str, dict[str, Summary]] = {}
    for name, other in COMPARED.items():
        if name in values and other in values:
            row = {figure: ratios(seen, values[other].get(figure, [])) for figure, seen in values[name].items()}
            compared[f"{name} / {other}"] = {figure: ratio for figure, ratio in row.items() if ratio}
    return compared


def _verdicts(workload: str, results: Results) -> list[dict[str, object]]:
    measured = [(target, target.value(results)) for target in targets_of(workload)]
    return [
        {"target": target.describe(), "value": value, "reached": target.reached(value)}
        for target, value in measured
        if value is not None
    ]


def _installed(program: str) -> bool:
    return bool(shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin"))


def _tools() -> Path:
    """The directory of drayage, which is installed there at the first use. If that fails, the server reports it."""
    tools = platformdirs.user_cache_path("hubcache-bench") / "tools"
    installers = ([sys.executable, "-m", "pip"], ["uv", "pip"], ["python3", "-m", "pip"])
    for installer in installers:
        if (tools / "bin" / "drayage").exists():
            break
        if _installed(installer[0]):
            command = [*installer, "install", "--quiet", "--target", str(tools), "drayage"]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False)
    return tools


def _machine() -> dict[str, object]:
    versions = {}
    for program, argument in (("nginx", "-v"), ("curl", "-V"), ("skopeo", "-v"), ("docker-registry", "-v")):
        path = shutil.which(program) or f"/usr/sbin/{program}"
        done = subprocess.run([path, argument], capture_output=True, text=True, timeout=10, check=False)
        versions[program] = (done.stdout or done.stderr).partition("\n")[0].strip()
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
    }
