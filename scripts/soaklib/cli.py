"""Tests the promises of the cache under kills, upstream faults, eviction and hostile input, and prints a table."""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .attacker import ATTACKS
from .endurance import Endurance
from .fuzz import fuzz_all
from .hostility import attack_all
from .kills import kill_many
from .report import row_of_attack, row_of_fuzz, rows_of_kills, rows_of_run
from .rows import Row, table

_REQUESTS = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen parts; returns the exit code: 1 when a promise does not hold, or nothing was run."""
    options = _parser().parse_args(arguments)
    # Inspections log the damage that was done on purpose.
    logging.getLogger("hubcache").addHandler(logging.NullHandler())
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    print(f"scripts/soak: --seed {seed}", flush=True)
    rows = []
    for row in _run(options, seed):
        print(f"{'ok  ' if row.holds else 'FAIL'} {row.promise}: {row.found}", flush=True)
        rows.append(row)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if rows and all(row.holds for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=__doc__,
        epilog="0 skips a part, and so does --attacks without a name. The exit code is 1 when a promise does not hold.",
    )
    add = parser.add_argument
    add("--seed", type=int, help="seed of random choices; without it, a new one is chosen and printed")
    add("--kills", type=int, default=300, help="kills of a store process, at random steps (%(default)s)")
    add("--fuzz", type=float, default=120, help="seconds of fuzzing the parsers (%(default)s)")
    add(
        "--attacks",
        nargs="*",
        choices=ATTACKS,
        default=list(ATTACKS),
        metavar="NAME",
        help=f"attacks to run, of {', '.join(ATTACKS)}; without the option, all",
    )
    add("--program-kills", type=int, default=20, help="kills of the program and its workers, under load (%(default)s)")
    add("--seconds", type=float, default=1200, help="length of the long run, without its warm-up (%(default)s)")
    add("--troubles", type=int, default=34, help="upstream faults in the long run (%(default)s)")
    add("--requests", type=int, default=_REQUESTS, help="most requests of clients in a run (%(default)s)")
    add("--json", type=Path, help="file for the result, which scripts/readme reads")
    return parser


def _run(options: argparse.Namespace, seed: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="hubcache-soak-") as directory:
        if options.kills:
            yield from rows_of_kills(kill_many(_folder(directory, "kills"), options.kills, seed, _say))
        if options.fuzz:
            yield row_of_fuzz(fuzz_all(seed, options.fuzz, _say))
        if options.attacks:
            yield from map(row_of_attack, attack_all(_folder(directory, "attacks"), options.attacks, _say))
        for name, seconds, troubles, kills in (
            ("killed", 0.0, 0, options.program_kills),
            ("long", options.seconds, options.troubles, 0),
        ):
            if seconds or kills:
                begun = time.monotonic()
                run = Endurance(_folder(directory, name), seed, options.requests, _say)
                outcome = run.run(seconds, troubles, kills)
                yield from rows_of_run(outcome, time.monotonic() - begun, kills)


def _folder(directory: str, name: str) -> Path:
    folder = Path(directory, name)
    folder.mkdir()
    return folder


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
