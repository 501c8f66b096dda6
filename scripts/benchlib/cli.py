"""The command: which workloads to run with which servers, in alternating rounds, and where the results go."""

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

from .certificates import make_certificates
from .processes import BenchError
from .report import markdown, svg
from .servers import STARTS, Server, Setup
from .stats import Summary
from .table import render
from .targets import Results, targets
from .upstream import upstream
from .workloads import WORKLOADS, Scene, Workload

_PROGRAMS = ("nginx", "curl", "hey", "skopeo", "docker-registry")
_BROKEN = 2
_BUSY = 1.5
"""Load average of the last minute above which others, or the workload before, disturb what is measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 also when a target is missed, 2 when it could not be run."""
    options = _parser().parse_args(arguments)
    if options.list:
        for workload in WORKLOADS:
            print(f"{workload.name:18} {workload.about}")
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
        return _BROKEN
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", metavar="NAME", choices=[one.name for one in WORKLOADS], help="repeatable")
    add("--servers", metavar="NAME,…", help=f"instead of each workload's own: {', '.join(STARTS)}")
    add("--quick", action="store_true", help="two rounds and smaller images")
    add("--rounds", type=int, metavar="N", help="rounds (default: 5, or 2 with --quick)")
    add("--json", type=Path, metavar="FILE", help="write all values there")
    add("--report", type=Path, metavar="FILE", help="measure nothing: print as Markdown what --json wrote")
    add("--svg", type=Path, metavar="FILE", help="with --report: draw it, too")
    add("--python", type=Path, default=Path(sys.executable), help="the Python whose mitmdump runs ours")
    add("--workers", type=int, default=os.cpu_count() or 1, help="nginx worker processes (default: cores)")
    add("--other", type=Path, metavar="DIRECTORY", help="measure the cache of another checkout beside ours")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of ours; repeatable")
    add("--limit", type=int, default=3600, metavar="SECONDS", help="give up after this time (default: an hour)")
    add("--list", action="store_true", help="tell the workloads and end")
    return parser


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _out_of_time(_: int, __: FrameType | None) -> None:
    raise BenchError("out of time, see --limit")


def _run(options: argparse.Namespace) -> None:
    missing = [program for program in _PROGRAMS if not _found(program)]
    if missing:
        raise BenchError(f"not installed: {', '.join(missing)} (Debian: apt install {' '.join(missing)})")
    names = options.only or [workload.name for workload in WORKLOADS]
    rounds = options.rounds or (2 if options.quick else 5)
    measured: dict[str, object] = {}
    document = {"machine": _machine(), "quick": options.quick, "workloads": measured}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hubcache-bench-")))
        certificates = make_certificates(directory / "certificates")
        source = stack.enter_context(upstream(directory / "upstream", certificates))
        for workload in (one for one in WORKLOADS if one.name in names):
            chosen = options.servers.split(",") if options.servers else workload.servers
            if options.other and "other" not in chosen:
                chosen = [*chosen, "other"]
            place = directory / workload.name
            setup = Setup(
                place,
                source,
                certificates,
                options.python.absolute(),
                [part for value in options.set for part in ("--set", value)],
                _tools() if "drayage" in chosen else directory,
                options.workers,
                options.other and options.other.absolute(),
            )
            load = os.getloadavg()[0]
            values, failures = _measure(workload, setup, chosen, min(rounds, workload.rounds), options.quick)
            results = {name: {key: Summary.of(seen) for key, seen in row.items()} for name, row in values.items()}
            print(render(workload.name, workload.about, results, failures), flush=True)
            if load > _BUSY:
                print(f"  (doubtful: the machine was busy, load {load:.1f}, when this began)\n")
            measured[workload.name] = {
                "about": workload.about,
                "load before": load,
                "values": values,
                "left out": failures,
                "targets": _verdicts(workload.name, results),
            }
            shutil.rmtree(place)
            shutil.rmtree(source.images.root / "v2", ignore_errors=True)
            if options.json:
                options.json.write_text(json.dumps(document, indent=1) + "\n")


def _report(results: Path, picture: Path | None) -> None:
    try:
        document = json.loads(results.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read {results}: {error}") from error
    print(markdown(document))
    if picture:
        picture.write_text(svg(document))


Values = dict[str, dict[str, list[float]]]


def _measure(
    workload: Workload, setup: Setup, names: Sequence[str], rounds: int, quick: bool
) -> tuple[Values, dict[str, str]]:
    """Server, figure → values by round; and why servers were left out. Each round begins with another server."""
    values: Values = {}
    failures: dict[str, str] = {}
    scene = Scene(setup.upstream, quick)
    with ExitStack() as stack:
        own = {name: stack.enter_context(ExitStack()) for name in names}
        servers: dict[str, Server] = {}
        for number in range(rounds):
            turn = number % len(names)
            for name in [*names[turn:], *names[:turn]]:
                if name in failures:
                    continue
                try:
                    if name not in servers:
                        servers[name] = own[name].enter_context(STARTS[name](setup))
                    figures = workload.measure(scene, servers[name], number)
                except BenchError as error:
                    failures[name] = str(error)
                    own[name].close()  # what it still fetches would take the upstream from the others
                    continue
                for figure, value in figures.items():
                    values.setdefault(name, {}).setdefault(figure, []).append(value)
    return {name: values[name] for name in names if name in values}, failures


def _verdicts(workload: str, results: Results) -> list[dict[str, object]]:
    measured = [(target, target.value(results)) for target in targets(workload)]
    return [
        {"wanted": target.describe(), "value": value, "reached": target.reached(value)}
        for target, value in measured
        if value is not None
    ]


def _found(program: str) -> bool:
    return bool(shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin"))


def _tools() -> Path:
    """Where drayage is, installed at the first use; left out of the run when that does not work."""
    tools = platformdirs.user_cache_path("hubcache-bench") / "tools"
    installers = ([sys.executable, "-m", "pip"], ["uv", "pip"], ["python3", "-m", "pip"])
    for installer in installers:
        if (tools / "bin" / "drayage").exists():
            break
        if _found(installer[0]):
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
